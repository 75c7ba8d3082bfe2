/* _ck: one Python function per line of ops.def, and the choice of kernels, threads and memory. */
#include "bindings/arrays.h"
#include "bindings/blas.h"
#include "bindings/memory.h"
#include "bindings/planted.h"
#include "layers/decoder.h"
#include "ops/ops.h"
#include "runtime/dispatch.h"
#include "runtime/run.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The choice of ck.use(): one for the process, read once a call. */
static _Atomic(const ck_isa *) isa_in_use;

static PyObject *
raise(const ck_op *op, ck_status status)
{
    if (status == CK_INTERRUPTED && PyErr_Occurred()) /* what the handler of a signal raised */
        return NULL;
    if (status == CK_INTERRUPTED)
        return PyErr_Format(PyExc_RuntimeError, "%s(): called off: a signal's handler forked, and this is the child", op->called);
    if (status == CK_NO_MEMORY)
        return PyErr_Format(PyExc_MemoryError, "%s(): no memory for its workspace", op->called);
    PyObject *kind = status == CK_BAD_TYPE    ? PyExc_TypeError
                     : status == CK_BAD_INDEX ? PyExc_IndexError
                     : status == CK_TOO_LARGE ? PyExc_OverflowError
                                              : PyExc_ValueError;
    return PyErr_Format(kind, "%s(): %s", op->called, ck_error_text());
}

static PyObject *
call_op(const ck_op *op, PyObject *const *objects, Py_ssize_t n)
{
    _Alignas(16) char args[CK_MAX_ARGS_BYTES];
    ck_call call;
    PyObject *result = NULL;

    if (ck_call_begin(&call, op, objects, n, args) == 0) {
        const ck_kernels *kernels = atomic_load_explicit(&isa_in_use, memory_order_relaxed)->of[call.dtype];
        ck_status status;
        Py_BEGIN_ALLOW_THREADS
        status = op->run(kernels, args);
        Py_END_ALLOW_THREADS
        result = status == CK_OK ? ck_call_result(&call) : raise(op, status);
    }
    ck_call_end(&call);
    return result;
}

/* From an op's declaration: its table, its signature and docstring, its function. */
#define CK_PARAM(kind, type, name, shape) {CK_##kind, CK_TYPE_##type, #name, shape, offsetof(struct_of_op, name)},
#define CK_ARG_IN(name) ", " name
#define CK_ARG_OUT CK_ARG_IN
#define CK_ARG_OVER CK_ARG_IN
#define CK_ARG_OPT_IN CK_ARG_IN
#define CK_ARG_OPT_OUT CK_ARG_IN
#define CK_ARG_MASK CK_ARG_IN
#define CK_ARG_INV CK_ARG_IN
#define CK_ARG_OUTV CK_ARG_IN
#define CK_ARG_OPT_INV CK_ARG_IN
#define CK_ARG_OPT_OUTV CK_ARG_IN
#define CK_ARG_LIST_IN CK_ARG_IN
#define CK_ARG_LIST_OUT CK_ARG_IN
#define CK_ARG_OPT_LIST_OUT CK_ARG_IN
#define CK_ARG_OPT_LIST_OVER CK_ARG_IN
#define CK_ARG_REAL CK_ARG_IN
#define CK_ARG_INT CK_ARG_IN
#define CK_ARG_FLAG CK_ARG_IN
#define CK_ARG_SIZE(name)
#define CK_ARG_SIZES CK_ARG_SIZE
#define CK_ARG_OWN CK_ARG_SIZE
#define CK_ARG(kind, type, name, shape) CK_ARG_##kind(#name)
#define CK_LINE_IN(type, name, shape) "    " name ": " type " [" shape "]\n"
#define CK_LINE_OUT(type, name, shape) "    " name ": " type " [" shape "], written; None: a new one\n"
#define CK_LINE_OVER CK_LINE_OUT
#define CK_LINE_OPT_IN(type, name, shape) "    " name ": " type " [" shape "] or None\n"
#define CK_LINE_OPT_OUT(type, name, shape) "    " name ": " type " [" shape "], written; None: not wanted; True: a new one\n"
#define CK_LINE_MASK(type, name, shape) "    " name ": bool or " type ", broadcast to [" shape "], or None\n"
#define CK_LINE_INV CK_LINE_IN
#define CK_LINE_OUTV CK_LINE_OUT
#define CK_LINE_OPT_INV CK_LINE_OPT_IN
#define CK_LINE_OPT_OUTV CK_LINE_OPT_OUT
#define CK_LINE_LIST_IN(type, name, shape) "    " name ": list of " type " [" shape "]\n"
#define CK_LINE_LIST_OUT(type, name, shape) "    " name ": list of " type " [" shape "], written\n"
#define CK_LINE_OPT_LIST_OUT(type, name, shape) "    " name ": list of " type " [" shape "], written; None: not wanted\n"
#define CK_LINE_OPT_LIST_OVER CK_LINE_OPT_LIST_OUT
#define CK_LINE_REAL(type, name, shape) "    " name ": float\n"
#define CK_LINE_INT(type, name, shape) "    " name ": int\n"
#define CK_LINE_FLAG(type, name, shape) "    " name ": bool\n"
#define CK_LINE_SIZE(type, name, shape)
#define CK_LINE_SIZES CK_LINE_SIZE
#define CK_LINE_OWN CK_LINE_SIZE
#define CK_LINE(kind, type, name, shape) CK_LINE_##kind(#type, #name, shape)

#define CK_OP(op, called)                                                                               \
    static const char doc_##op[] = #op "($module" CK_ARGS_##op(CK_ARG) ", /)\n--\n\n"                   \
        CK_ARGS_##op(CK_LINE);                                                                          \
    static ck_status run_##op(const ck_kernels *k, const void *args) { return ck_##op(k, args); }       \
    static ck_op *table_of_##op(void)                                                                   \
    {                                                                                                   \
        typedef struct ck_##op struct_of_op;                                                            \
        static const ck_param params[] = {CK_ARGS_##op(CK_PARAM)};                                      \
        static ck_op table = {#op, called, params, sizeof params / sizeof *params, .run = run_##op};    \
        _Static_assert(sizeof(struct_of_op) <= CK_MAX_ARGS_BYTES, "raise CK_MAX_ARGS_BYTES");           \
        _Static_assert(sizeof params / sizeof *params <= CK_MAX_PARAMS, "raise CK_MAX_PARAMS");         \
        return &table;                                                                                  \
    }                                                                                                   \
    static PyObject *py_##op(PyObject *module, PyObject *const *objects, Py_ssize_t n)                  \
    {                                                                                                   \
        (void)module;                                                                                   \
        return call_op(table_of_##op(), objects, n);                                                    \
    }
#define CK_LAYER CK_OP
#define CK_PART(op)
#include "ops.def"

/* ---- instruction sets, threads, memory ---- */

/* isas() -> the names use() takes, best first. */
static PyObject *
isas(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    PyObject *names = PyList_New(0);
    for (const ck_isa *isa = ck_isas(); names != NULL && isa->name; isa++) {
        if (isa->lacking != NULL || isa->model)
            continue;
        PyObject *name = PyUnicode_FromString(isa->name);
        if (name == NULL || PyList_Append(names, name) < 0)
            Py_CLEAR(names);
        Py_XDECREF(name);
    }
    return names;
}

static int
use_isa(const char *name, const char *who)
{
    const ck_isa *isa = ck_isa_named(name);
    if (isa != NULL) {
        atomic_store(&isa_in_use, isa);
        return 0;
    }
    char known[128] = "";
    for (const ck_isa *other = ck_isas(); other->name; other++)
        if (other->lacking == NULL && !other->model)
            snprintf(known + strlen(known), sizeof known - strlen(known), known[0] ? ", %s" : "%s", other->name);
    PyErr_Format(PyExc_ValueError, "%s: no instruction set '%s' here; there are %s", who, name, known);
    return -1;
}

/* use_isa(name) -> the name in use before. */
static PyObject *
py_use_isa(PyObject *module, PyObject *arg)
{
    (void)module;
    const char *before = atomic_load(&isa_in_use)->name;
    if (!PyUnicode_Check(arg))
        return PyErr_Format(PyExc_TypeError, "use(): 'isa' must be a name from isas(), not %R", arg);
    const char *name = PyUnicode_AsUTF8AndSize(arg, NULL);
    if (name == NULL || use_isa(name, "use()") < 0)
        return NULL;
    return PyUnicode_FromString(before);
}

static PyObject *
isa(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return PyUnicode_FromString(atomic_load(&isa_in_use)->name);
}

static PyObject *
set_num_threads(PyObject *module, PyObject *arg)
{
    (void)module;
    PyObject *index = PyNumber_Index(arg);
    if (index == NULL)
        return PyErr_Format(PyExc_TypeError, "set_num_threads(): 'n' must be an integer, not %R", arg);
    const long n = PyLong_AsLong(index);
    Py_DECREF(index);
    if (n < 1 || n > CK_MAX_THREADS) {
        PyErr_Clear();
        return PyErr_Format(PyExc_ValueError, "set_num_threads(): 'n' must be 1 to %d, not %R", CK_MAX_THREADS, arg);
    }
    ck_set_threads((size_t)n);
    Py_RETURN_NONE;
}

static PyObject *
get_num_threads(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return PyLong_FromSize_t(ck_threads());
}

static PyObject *
memory_stats(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    const ck_arena_stats s = ck_arena_read();
    return Py_BuildValue("{s:n,s:n,s:n,s:n,s:n,s:n}", "in_use", (Py_ssize_t)s.in_use, "cached", (Py_ssize_t)s.cached,
                         "peak", (Py_ssize_t)s.peak, "limit", (Py_ssize_t)s.limit, "takes", (Py_ssize_t)s.takes,
                         "reuses", (Py_ssize_t)s.reuses);
}

static PyObject *
empty_cache(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    ck_arena_empty();
    Py_RETURN_NONE;
}

static PyObject *
set_cache_limit(PyObject *module, PyObject *arg)
{
    (void)module;
    const size_t n = PyLong_AsSize_t(arg);
    if (n == (size_t)-1 && PyErr_Occurred())
        return NULL;
    ck_arena_set_limit(n);
    Py_RETURN_NONE;
}

static PyObject *
fail_allocation(PyObject *module, PyObject *arg)
{
    (void)module;
    const size_t n = PyLong_AsSize_t(arg);
    if (n == (size_t)-1 && PyErr_Occurred())
        return NULL;
    ck_arena_fail_at(n);
    Py_RETURN_NONE;
}

/* What was built and what this CPU lacks: the facts behind ck.show_config(). */
static PyObject *
build_info(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    PyObject *lacking = PyDict_New();
    for (const ck_isa *each = ck_isas(); lacking != NULL && each->name; each++) {
        if (each->model)
            continue;
        PyObject *what = each->lacking != NULL ? PyUnicode_FromString(each->lacking) : Py_NewRef(Py_None);
        if (what == NULL || PyDict_SetItemString(lacking, each->name, what) < 0)
            Py_CLEAR(lacking);
        Py_XDECREF(what);
    }
    if (lacking == NULL)
        return NULL;
#if defined(__clang__)
    const char *compiler = "clang " __clang_version__;
#else
    const char *compiler = "gcc " __VERSION__;
#endif
    return Py_BuildValue("{s:s,s:s,s:N}", "compiler", compiler, "dtypes", "float32,float16,bfloat16", "lacking", lacking);
}

/* Runs the handlers of signals that came while an op works; true when one raised. */
static bool
signal_came(void)
{
    const PyGILState_STATE state = PyGILState_Ensure();
    const bool raised = PyErr_CheckSignals() < 0;
    PyGILState_Release(state);
    return raised;
}

static int
module_exec(PyObject *module)
{
    if (ck_arrays_init(module) < 0)
        return -1;
#define CK_OP(op, called) ck_op_prepare(table_of_##op());
#define CK_LAYER CK_OP
#define CK_PART(op)
#include "ops.def"
    ck_set_poll(signal_came);
    return use_isa(getenv("CK_ISA"), "CK_ISA");
}

#define CK_OP(op, called) {#op, (PyCFunction)(void (*)(void))py_##op, METH_FASTCALL, doc_##op},
#define CK_LAYER CK_OP
#define CK_PART(op)
static PyMethodDef methods[] = {
#include "ops.def"
    {"isas", isas, METH_NOARGS, "isas($module, /)\n--\n\nInstruction sets to choose from, best first."},
    {"isa", isa, METH_NOARGS, "isa($module, /)\n--\n\nThe instruction set in use."},
    {"use_isa", py_use_isa, METH_O, "use_isa($module, isa, /)\n--\n\nChoose the kernels; return the name of those before."},
    {"set_num_threads", set_num_threads, METH_O, "set_num_threads($module, n, /)\n--\n\nThreads an op may use."},
    {"get_num_threads", get_num_threads, METH_NOARGS, "get_num_threads($module, /)\n--\n\nThreads an op may use."},
    {"empty", (PyCFunction)(void (*)(void))ck_py_empty, METH_FASTCALL, "empty($module, shape, dtype='float32', /)\n--\n\nA new array, not cleared, from the arena."},
    {"memory_stats", memory_stats, METH_NOARGS, "memory_stats($module, /)\n--\n\nBytes of the arena, by name."},
    {"empty_cache", empty_cache, METH_NOARGS, "empty_cache($module, /)\n--\n\nGive cached memory back to the system."},
    {"set_cache_limit", set_cache_limit, METH_O, "set_cache_limit($module, bytes, /)\n--\n\nKeep at most this much for reuse."},
    {"fail_allocation", fail_allocation, METH_O, "fail_allocation($module, n, /)\n--\n\nFor tests: the n-th allocation from now fails, once."},
    {"build_info", build_info, METH_NOARGS, "build_info($module, /)\n--\n\nWhat was built, and what this CPU lacks."},
    CK_BLAS_METHODS
    CK_FAULTS_METHODS
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
#if defined(Py_mod_multiple_interpreters)
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED}, /* as NumPy */
#endif
#if defined(Py_mod_gil)
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_ck",
    .m_doc = "Kernels.  Call them through ckernels, which has names, defaults and docstrings.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__ck(void)
{
    return PyModuleDef_Init(&module_def);
}
