#include "bindings/memory.h"

#include "runtime/arena.h"

typedef struct {
    PyObject_HEAD
    void *data;
    size_t size;
} block_object;

static PyTypeObject *block_type;

static void
block_dealloc(PyObject *self)
{
    block_object *block = (block_object *)self;
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    ck_give(block->data, block->size);
    release(self);
    Py_DECREF(type);
}

static PyType_Slot block_slots[] = {
    {Py_tp_dealloc, block_dealloc},
    {Py_tp_doc, "Owner of a block of the arena; arrays refer to it as their base."},
    {0, NULL},
};
static PyType_Spec block_spec = {
    .name = "ckernels._ck.Block",
    .basicsize = sizeof(block_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = block_slots,
};

int
ck_memory_init(PyObject *module)
{
    if (block_type == NULL)
        block_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &block_spec, NULL);
    return block_type != NULL ? 0 : -1;
}

PyObject *
ck_block_new(size_t size, void **data)
{
    allocfunc alloc = (allocfunc)PyType_GetSlot(block_type, Py_tp_alloc);
    block_object *block = (block_object *)alloc(block_type, 0);
    if (block == NULL)
        return NULL;
    block->size = size;
    block->data = ck_take(size);
    if (block->data == NULL) {
        Py_DECREF(block);
        return PyErr_NoMemory();
    }
    *data = block->data;
    return (PyObject *)block;
}
