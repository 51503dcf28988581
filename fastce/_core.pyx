# cython: boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=False
"""The C core as Python calls it: a Problem becomes the record of fastce.h, which points into its arrays.

Nothing is validated here, and nothing is copied: the front end saw to both.
"""

cimport numpy as cnp
from libc.string cimport memset

from cpython.object cimport PyObject

from fastce.c_api cimport *

cdef extern from "Python.h":
    int PyContextVar_Get(object var, PyObject *default_value, PyObject **value) except -1
    void Py_DECREF(PyObject *value)

cnp.import_array()


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


cdef tuple quick_defaults = ()
cdef tuple quick_overrides = ()
cdef bytes quick_isa = b""
cdef int64_t quick_logits = 0, quick_row = 0


def enable_quick(tuple defaults not None, tuple overrides not None, bytes isa not None, int64_t most_logits,
                 int64_t logits_per_row):
    """Say what `quick` takes for granted: the options left out of a call, context variables at None, the ISA, and how
    many float32 logits one thread does on its own, where a row counts for some."""
    global quick_defaults, quick_overrides, quick_isa, quick_logits, quick_row
    quick_defaults, quick_overrides, quick_isa = defaults, overrides, isa
    quick_logits, quick_row = most_logits, logits_per_row


def quick(logits, target, *options):
    """The mean loss of a small batch of plain arrays without any option, or None: then the general path does it.

    That path would come to the same kernel with the same problem; this one only asks less on the way. Whatever is not
    as plain as can be, and every error, is left to it.
    """
    cdef fastce_problem record
    cdef fastce_totals totals
    cdef fastce_status status
    cdef PyObject *value
    cdef Py_ssize_t i
    cdef int64_t logits_in_all
    cdef cnp.ndarray x, y
    cdef int number
    cdef const char *isa = quick_isa
    if len(options) != len(quick_defaults) or type(logits) is not cnp.ndarray or type(target) is not cnp.ndarray:
        return None
    for i in range(len(quick_defaults)):
        if <PyObject *>options[i] != <PyObject *>quick_defaults[i]:
            return None
    for i in range(len(quick_overrides)):
        PyContextVar_Get(quick_overrides[i], NULL, &value)
        if value == NULL:
            return None
        Py_DECREF(value)
        if value != <PyObject *>None:
            return None
    x, y = logits, target
    number = cnp.PyArray_TYPE(x)
    if cnp.PyArray_NDIM(x) != 2 or cnp.PyArray_NDIM(y) != 1 or cnp.PyArray_DIM(x, 0) != cnp.PyArray_DIM(y, 0):
        return None
    if not (number == cnp.NPY_FLOAT or number == cnp.NPY_DOUBLE) or not cnp.PyTypeNum_ISINTEGER(cnp.PyArray_TYPE(y)):
        return None
    logits_in_all = cnp.PyArray_SIZE(x) + cnp.PyArray_DIM(x, 0) * quick_row
    if cnp.PyArray_SIZE(x) == 0 or logits_in_all * (2 if number == cnp.NPY_DOUBLE else 1) > quick_logits:
        return None
    memset(&record, 0, sizeof(fastce_problem))
    record.output = FASTCE_LOSS
    record.target_kind = FASTCE_LABELS
    record.n_axes = 1
    record.shape = <const int64_t *>cnp.PyArray_DIMS(x)
    record.n_classes = cnp.PyArray_DIM(x, 1)
    fill(&record.logits, x, True)
    fill(&record.target, y, False)
    record.target_scale = 1
    record.grad_scale = 1
    record.has_ignore_index = cnp.PyTypeNum_ISSIGNED(cnp.PyArray_TYPE(y))
    record.ignore_index = -100
    with nogil:
        status = fastce_run(&record, isa, 1, &totals)
    return totals.loss / totals.weight if status == FASTCE_OK and totals.weight > 0 else None


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
