# cython: boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=False
"""The C core as Python calls it: a Problem becomes the record of fastce.h, which points into its arrays.

Nothing is validated here, and nothing is copied: the front end saw to both.
"""

from libc.stdint cimport uint64_t
cimport numpy as cnp
from libc.string cimport memset

from cpython.object cimport PyObject

from fastce._c_types cimport *

cdef extern from "fastce.h" nogil:
    int fastce_abi_version()
    const char *fastce_status_message(fastce_status status)
    fastce_status fastce_scan(const fastce_problem *problem, int num_threads, fastce_totals *totals)
    fastce_status fastce_run(const fastce_problem *problem, const char *isa, int num_threads, fastce_totals *totals)
    const char *const *fastce_isa_names()
    int fastce_isa_runs(const char *isa)
    const char *const *fastce_cpu_feature_names()
    int fastce_cpu_has(const char *feature)
    const char *fastce_kernel_name(const fastce_problem *problem)
    int fastce_has_openmp()

cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object number, int *overflow) except? -1
    int PyContextVar_Get(object var, PyObject *default_value, PyObject **value) except -1
    void Py_DECREF(PyObject *value)

cnp.import_array()

functions = <fastce_functions_1 *>fastce_get_functions()  # for c_api.pxd; the constant ones of the library


cdef int type_code(cnp.ndarray array) except -1:
    """The fastce_dtype of an array that the front end accepted."""
    cdef int number = cnp.PyArray_TYPE(array)
    cdef bint signed
    if number == cnp.NPY_FLOAT:
        return FASTCE_F32
    if number == cnp.NPY_DOUBLE:
        return FASTCE_F64
    if number == cnp.NPY_FLOAT16:
        return FASTCE_F16
    if number == cnp.NPY_BOOL:
        return FASTCE_BOOL
    if cnp.PyTypeNum_ISINTEGER(number):
        signed = cnp.PyTypeNum_ISSIGNED(number)
        size = cnp.PyArray_ITEMSIZE(array)
        if size == 1:
            return FASTCE_I8 if signed else FASTCE_U8
        if size == 2:
            return FASTCE_I16 if signed else FASTCE_U16
        if size == 4:
            return FASTCE_I32 if signed else FASTCE_U32
        if size == 8:
            return FASTCE_I64 if signed else FASTCE_U64
    if array.dtype.name == "bfloat16":
        return FASTCE_BF16
    raise TypeError(f"the C core has no dtype {array.dtype}")


cdef int fill(fastce_array *record, object optional, bint has_classes) except -1:
    """Point the record at an array whose class axis, if it has one, is the last."""
    cdef cnp.ndarray array
    if optional is None:
        return 0
    array = optional
    record.data = cnp.PyArray_DATA(array)
    record.dtype = <fastce_dtype>type_code(array)
    record.byte_swapped = cnp.PyArray_ISBYTESWAPPED(array)
    record.strides = <const ptrdiff_t *>cnp.PyArray_STRIDES(array)
    if has_classes:
        record.class_stride = record.strides[cnp.PyArray_NDIM(array) - 1]
    return 0


cdef void *array_data(object optional) except? NULL:
    return NULL if optional is None else cnp.PyArray_DATA(<cnp.ndarray>optional)


cdef const double *class_array(object optional) except? NULL:
    return <double *>array_data(optional)


cdef int translate(object problem, fastce_problem *record, fastce_statistics *statistics) except -1:
    """Fill the records from a Problem, which must outlive them."""
    cdef cnp.ndarray logits = problem.logits
    memset(record, 0, sizeof(fastce_problem))
    record.output = <fastce_output><int>problem.output
    record.n_axes = cnp.PyArray_NDIM(logits) - 1
    record.shape = <const int64_t *>cnp.PyArray_DIMS(logits)
    record.n_classes = cnp.PyArray_DIM(logits, record.n_axes)
    fill(&record.logits, logits, True)
    labels = problem.labels
    if labels is not None:
        record.target_kind = FASTCE_LABELS
        fill(&record.target, labels, False)
    elif problem.dense is not None:
        record.target_kind = FASTCE_DENSE
        fill(&record.target, problem.dense, True)
    elif problem.listed is not None:
        record.target_kind = FASTCE_SPARSE
        fill(&record.target, problem.listed, True)
        fill(&record.probabilities, problem.probabilities, True)
        record.n_listed = cnp.PyArray_DIM(<cnp.ndarray>problem.listed, record.n_axes)
        record.spread_missing = problem.spread_missing
    fill(&record.sample_weight, problem.sample_weight, False)
    fill(&record.out, problem.out, True)
    fill(&record.grad_output, problem.grad_output, False)
    record.target_scale = problem.target_scale
    record.class_weight = class_array(problem.class_weight)
    record.class_vector = class_array(problem.class_vector)
    record.z_loss = problem.z_loss
    record.grad_scale = problem.grad_scale
    ignore_index = problem.ignore_index
    if ignore_index is not None:
        record.has_ignore_index = 1
        record.ignore_index = <int64_t>(<unsigned long long>(ignore_index & 0xFFFFFFFFFFFFFFFF))
    record.kind = <fastce_kind><int>problem.kind
    record.clip = problem.clip
    record.temperature = problem.temperature
    record.softcap = problem.softcap
    record.gamma = problem.gamma
    record.positive = problem.positive
    record.negative = problem.negative
    fill(&record.factor, problem.factor, False)
    fill(&record.positive_weight, problem.positive_weight, False)
    record.scanned = 1  # the front end scans where an array of the user's is written
    if problem.row_values is not None:
        record.row_values = cnp.PyArray_DATA(<cnp.ndarray>problem.row_values)
    if problem.statistics is not None:
        record.statistics = statistics
        asked = problem.statistics
        statistics.lse = array_data(asked.lse)
        statistics.loss = array_data(asked.loss)
        statistics.entropy = array_data(asked.entropy)
        statistics.argmax = <int64_t *>array_data(asked.argmax)
        statistics.target_probability = array_data(asked.target_probability)
        statistics.rank = <int64_t *>array_data(asked.rank)
        statistics.margin = array_data(asked.margin)
        statistics.correct = <unsigned char *>array_data(asked.correct)
        statistics.maximum = array_data(asked.maximum)
        statistics.rest = array_data(asked.rest)
    return 0


cdef object finish(fastce_status status, const fastce_totals *totals):
    if status == FASTCE_NO_MEMORY:
        raise MemoryError("the C core could not allocate its scratch")
    if status != FASTCE_OK and status != FASTCE_BAD_ROW:
        raise RuntimeError(f"the C core refused a call: {fastce_status_message(status).decode()}")
    return totals.bad_row, totals.loss, totals.weight


def scan(problem not None, int num_threads):
    """Check every row and total the weights: (bad_row, 0.0, weight)."""
    cdef fastce_problem record
    cdef fastce_statistics statistics
    cdef fastce_totals totals
    cdef fastce_status status
    translate(problem, &record, &statistics)
    with nogil:
        status = fastce_scan(&record, num_threads, &totals)
    return finish(status, &totals)


def run(problem not None, bytes isa, int num_threads):
    """Carry a problem out on an ISA, or on the best one for None: (bad_row, loss, weight)."""
    cdef fastce_problem record
    cdef fastce_statistics statistics
    cdef fastce_totals totals
    cdef fastce_status status
    cdef const char *name = NULL
    if isa is not None:
        name = isa
    translate(problem, &record, &statistics)
    with nogil:
        status = fastce_run(&record, name, num_threads, &totals)
    return finish(status, &totals)


cdef int64_t MOST_THREADS = 1 << 20  # beyond what any machine has


cdef class Quick:
    """Batches of plain arrays with few options; None to everything else, which the general path then does.

    That path would come to the same kernel with the same problem; this one only asks less on the way. Whatever is not
    as plain as can be, and every error, is left to it. The parameters are those of the public functions.
    """
    cdef tuple overrides
    cdef bytes isa
    cdef tuple limits
    cdef int64_t limit
    cdef double logits_per_thread[2]
    cdef double logits_per_row

    def __init__(self, tuple overrides not None, bytes isa not None, tuple limits not None, int64_t limit,
                 double loss_logits, double grad_logits, double logits_per_row):
        """Say what is taken for granted: context variables at None, the ISA; where others are None too the most
        threads, and for how many float32 logits there is one, of a loss and of a gradient, where a row counts for some.
        """
        self.overrides, self.isa, self.limits, self.limit = overrides, isa, limits, limit
        self.logits_per_thread[0], self.logits_per_thread[1] = loss_logits, grad_logits
        self.logits_per_row = logits_per_row

    def loss(self, logits, target, axis, weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction,
             denominator, base, num_threads):
        """The loss, or None."""
        cdef fastce_problem record
        cdef fastce_totals totals
        if weight is not None or sample_weight is not None or denominator is not None or base is not None:
            return None
        if not (is_zero(label_smoothing) and is_zero(z_loss) and is_last(axis)):
            return None
        cdef int threads = self.translate(&record, logits, target, ignore_index, reduction, num_threads, FASTCE_LOSS)
        if threads == 0:
            return None
        values = None
        if reduction == "none":
            values = new_array(1, cnp.PyArray_DIMS(<cnp.ndarray>logits), cnp.PyArray_TYPE(<cnp.ndarray>logits))
            record.row_values = cnp.PyArray_DATA(<cnp.ndarray>values)
        if self.run(&record, threads, &totals) != FASTCE_OK:
            return None
        return values if values is not None else reduced(reduction, &totals)

    def loss_and_grad(self, logits, target, axis, weight, sample_weight, ignore_index, label_smoothing, z_loss,
                      reduction, denominator, base, grad_output, out, num_threads):
        """The loss and its gradient, or None; nothing is written then."""
        cdef fastce_problem record
        cdef fastce_totals totals
        cdef cnp.ndarray x, gradient
        if weight is not None or sample_weight is not None or denominator is not None or base is not None:
            return None
        if grad_output is not None or not (is_zero(label_smoothing) and is_zero(z_loss) and is_last(axis)):
            return None
        cdef int threads = self.translate(&record, logits, target, ignore_index, reduction, num_threads, FASTCE_GRAD)
        if threads == 0:
            return None
        x = logits
        if out is None:
            if not cnp.PyArray_IS_C_CONTIGUOUS(x):
                return None
            out = new_array(2, cnp.PyArray_DIMS(x), cnp.PyArray_TYPE(x))
        elif not can_receive(out, x, target):
            return None
        gradient = out
        fill(&record.out, gradient, True)
        if fastce_scan(&record, threads, &totals) != FASTCE_OK:
            return None
        if reduction == "mean":
            if not totals.weight > 0:
                return None
            record.grad_scale = 1 / totals.weight
        values = None
        if reduction == "none":
            values = new_array(1, cnp.PyArray_DIMS(x), cnp.PyArray_TYPE(x))
            record.row_values = cnp.PyArray_DATA(<cnp.ndarray>values)
        if self.run(&record, threads, &totals) != FASTCE_OK:
            return None
        return (values if values is not None else reduced(reduction, &totals)), out

    cdef int translate(self, fastce_problem *record, logits, target, ignore_index, reduction, num_threads,
                       fastce_output output) except -1:
        """Fill the record, but for what is written; return how many threads it is worth, 0 where it is not plain."""
        cdef cnp.ndarray x, y
        cdef int number, bits, overflow = 0
        cdef int64_t index
        cdef int threads
        cdef double work
        cdef bint signed
        if type(logits) is not cnp.ndarray or type(target) is not cnp.ndarray or type(reduction) is not str:
            return 0
        if not (reduction == "mean" or reduction == "sum" or reduction == "none"):
            return 0
        if not (num_threads is None or (type(num_threads) is int and num_threads > 0)):
            return 0
        if not are_none(self.overrides):
            return 0
        x, y = logits, target
        number = cnp.PyArray_TYPE(x)
        if cnp.PyArray_NDIM(x) != 2 or cnp.PyArray_NDIM(y) != 1 or cnp.PyArray_DIM(x, 0) != cnp.PyArray_DIM(y, 0):
            return 0
        if not (number == cnp.NPY_FLOAT or number == cnp.NPY_DOUBLE):
            return 0
        if not cnp.PyTypeNum_ISINTEGER(cnp.PyArray_TYPE(y)) or type(ignore_index) is not int:
            return 0
        if cnp.PyArray_SIZE(x) == 0:
            return 0
        work = cnp.PyArray_DIM(x, 0) * (cnp.PyArray_DIM(x, 1) + self.logits_per_row)
        work *= (2 if number == cnp.NPY_DOUBLE else 1) / self.logits_per_thread[output == FASTCE_GRAD]
        threads = 1
        if work >= 2:
            if not are_none(self.limits):
                return 0
            threads = <int>min(work, <double>(self.limit if num_threads is None else min(num_threads, MOST_THREADS)))
        index = PyLong_AsLongLongAndOverflow(ignore_index, &overflow)
        if overflow:
            return 0
        memset(record, 0, sizeof(fastce_problem))
        record.output = output
        record.target_kind = FASTCE_LABELS
        record.n_axes = 1
        record.shape = <const int64_t *>cnp.PyArray_DIMS(x)
        record.n_classes = cnp.PyArray_DIM(x, 1)
        fill(&record.logits, x, True)
        fill(&record.target, y, False)
        record.target_scale = 1
        record.grad_scale = 1
        record.scanned = 1  # before a gradient it is; losses go into a new array, which nobody sees if a row is bad
        # An index that the dtype of the labels cannot hold equals none of them.
        bits, signed = 8 * <int>cnp.PyArray_ITEMSIZE(y), cnp.PyTypeNum_ISSIGNED(cnp.PyArray_TYPE(y))
        record.has_ignore_index = (signed or index >= 0) and (
            bits == 64 or (index >> (bits - signed)) == (-1 if index < 0 else 0))
        record.ignore_index = index
        return threads

    cdef fastce_status run(self, const fastce_problem *record, int threads, fastce_totals *totals):
        cdef const char *isa = self.isa
        cdef fastce_status status
        with nogil:
            status = fastce_run(record, isa, threads, totals)
        return status


cdef inline bint are_none(tuple variables) except -1:
    """Whether context variables have the value None."""
    cdef PyObject *value
    cdef Py_ssize_t i
    for i in range(len(variables)):
        PyContextVar_Get(variables[i], NULL, &value)
        if value == NULL:
            return False
        Py_DECREF(value)
        if value != <PyObject *>None:
            return False
    return True


cdef inline bint is_zero(number):
    return (type(number) is float and <double>number == 0) or (type(number) is int and number == 0)


cdef inline bint is_last(axis):
    """Whether this is the last of two axes."""
    return type(axis) is int and (axis == -1 or axis == 1)


cdef inline new_array(int n_axes, cnp.npy_intp *shape, int number):
    return cnp.PyArray_EMPTY(n_axes, shape, number, 0)


cdef bint can_receive(out, cnp.ndarray x, cnp.ndarray y) except -1:
    """Whether an array may receive the gradient: like the logits, and these themselves or apart from all inputs."""
    cdef cnp.ndarray array
    if type(out) is not cnp.ndarray:
        return False
    array = out
    if cnp.PyArray_NDIM(array) != 2 or cnp.PyArray_TYPE(array) != cnp.PyArray_TYPE(x):
        return False
    if cnp.PyArray_DIM(array, 0) != cnp.PyArray_DIM(x, 0) or cnp.PyArray_DIM(array, 1) != cnp.PyArray_DIM(x, 1):
        return False
    if not (cnp.PyArray_ISWRITEABLE(array) and cnp.PyArray_IS_C_CONTIGUOUS(array)):
        return False
    return (out is x or are_apart(array, x)) and are_apart(array, y)


cdef bint are_apart(cnp.ndarray a, cnp.ndarray b):
    """Whether the memory from the first to the last element of each array holds none of the other."""
    cdef char *bounds[4]
    cdef cnp.ndarray array
    cdef int which, axis
    cdef cnp.npy_intp length
    for which in range(2):
        array = a if which == 0 else b
        bounds[2 * which] = <char *>cnp.PyArray_DATA(array)
        bounds[2 * which + 1] = <char *>cnp.PyArray_DATA(array) + cnp.PyArray_ITEMSIZE(array)
        for axis in range(cnp.PyArray_NDIM(array)):
            length = (cnp.PyArray_DIM(array, axis) - 1) * cnp.PyArray_STRIDE(array, axis)
            bounds[2 * which + (length > 0)] += length
    return bounds[1] <= bounds[2] or bounds[3] <= bounds[0]


cdef inline reduced(reduction, const fastce_totals *totals):
    """The mean, None where there is nothing to average, or the sum."""
    if reduction == "sum":
        return totals.loss
    return totals.loss / totals.weight if totals.weight > 0 else None


def kernel_name(problem not None):
    """The kernel a problem gets."""
    cdef fastce_problem record
    cdef fastce_statistics statistics
    translate(problem, &record, &statistics)
    return fastce_kernel_name(&record).decode()


def isa_names():
    """The compiled ISAs, best first, each with whether this processor runs it."""
    cdef const char *const *name = fastce_isa_names()
    found = {}
    while name[0] != NULL:
        found[name[0].decode()] = bool(fastce_isa_runs(name[0]))
        name += 1
    return found


def cpu_features():
    """The features of the processor that the ISAs ask for, each with whether it is there."""
    cdef const char *const *name = fastce_cpu_feature_names()
    found = {}
    while name[0] != NULL:
        found[name[0].decode()] = bool(fastce_cpu_has(name[0]))
        name += 1
    return found


def abi_version():
    """The version of the C API."""
    return fastce_abi_version()


def has_openmp():
    """Whether the core was compiled with OpenMP."""
    return bool(fastce_has_openmp())


cdef extern from "flat_call.h" nogil:
    ctypedef struct flat_result:
        pass

    void flat_call(const int64_t *words, const char *isa, flat_result *result)


cdef bytes flat_isa = b""
cdef const char *flat_isa_name = NULL


cdef void flat_call_here(const int64_t *words, flat_result *result) noexcept nogil:
    flat_call(words, flat_isa_name, result)


def flat_call_address(bytes isa):
    """The address of `flat_call` without its second argument: the named ISA from now on, the best one for None."""
    global flat_isa, flat_isa_name
    if isa is not None:
        flat_isa = isa
        flat_isa_name = flat_isa
    return <size_t>&flat_call_here


cdef extern from "memory_limit.h" nogil:
    uint64_t memory_read(const char *data, size_t n_bytes, size_t prefetch, int n_threads)
    void memory_read_write(
        const char *data, char *out, size_t n_bytes, size_t prefetch, int streaming, int n_threads
    )


def read_memory(const unsigned char[::1] data, size_t prefetch, int num_threads):
    """Visit bytes once, for a benchmark's memory limit; `prefetch` is how many bytes ahead, or 0."""
    cdef uint64_t total = 0
    if data.shape[0] > 0 and num_threads > 0:
        with nogil:
            total = memory_read(<const char *>&data[0], data.shape[0], prefetch, num_threads)
    return total


def copy_memory(
    const unsigned char[::1] data, unsigned char[::1] out, size_t prefetch, bint streaming, int num_threads
):
    """Copy bytes to `out`, which is as long and aligned to 64, for a benchmark's memory limit."""
    if out.shape[0] < data.shape[0] or data.shape[0] == 0 or num_threads < 1 or <size_t>&out[0] % 64:
        raise ValueError("out: expected as many bytes, aligned to 64")
    with nogil:
        memory_read_write(<const char *>&data[0], <char *>&out[0], data.shape[0], prefetch, streaming, num_threads)
