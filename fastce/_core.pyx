# cython: boundscheck=False, wraparound=False, freethreading_compatible=False
"""The C core as Python calls it: a Problem becomes the record of fastce.h, which points into its arrays.

Nothing is validated here, and nothing is copied: the front end saw to both.
"""

cimport numpy as cnp
from libc.string cimport memset

from fastce.c_api cimport *

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


cdef const double *class_array(object optional) except? NULL:
    return NULL if optional is None else <double *>cnp.PyArray_DATA(<cnp.ndarray>optional)


cdef int translate(object problem, fastce_problem *record) except -1:
    """Fill the record from a Problem, which must outlive it."""
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
    if problem.row_values is not None:
        record.row_values = cnp.PyArray_DATA(<cnp.ndarray>problem.row_values)
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
    cdef fastce_totals totals
    cdef fastce_status status
    translate(problem, &record)
    with nogil:
        status = fastce_scan(&record, num_threads, &totals)
    return finish(status, &totals)


def run(problem not None, bytes isa, int num_threads):
    """Carry a problem out on an ISA, or on the best one for None: (bad_row, loss, weight)."""
    cdef fastce_problem record
    cdef fastce_totals totals
    cdef fastce_status status
    cdef const char *name = NULL
    if isa is not None:
        name = isa
    translate(problem, &record)
    with nogil:
        status = fastce_run(&record, name, num_threads, &totals)
    return finish(status, &totals)


def kernel_name(problem not None):
    """The kernel a problem gets."""
    cdef fastce_problem record
    translate(problem, &record)
    return fastce_kernel_name(&record).decode()


def isa_names():
    """The compiled ISAs, best first, each with whether this processor runs it."""
    cdef const char *const *name = fastce_isa_names()
    found = {}
    while name[0] != NULL:
        found[name[0].decode()] = bool(fastce_isa_runs(name[0]))
        name += 1
    return found


def abi_version():
    """The version of the C API."""
    return fastce_abi_version()


def has_openmp():
    """Whether the core was compiled with OpenMP."""
    return bool(fastce_has_openmp())
