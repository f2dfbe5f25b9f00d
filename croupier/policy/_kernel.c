/* The inner loops of a decision, compiled: encoding features, scoring, inverse gap weighting, drawing.
 *
 * This is croupier/policy/encoding.py over again, for what nearly all requests are, and gives the
 * same indices and values in the same order; and so are croupier/policy/exploration/gap_weighting.py
 * and croupier/policy/sampling.py. Whatever is unusual or wrong is left to Python: encode and choose
 * return None for it. tests/policy/test_kernel.py holds the two to be equal.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#include <numpy/arrayobject.h>
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define MAX_DEPTH 8
#define MAX_PATH 1024
#define SORTED_IN_PLACE 64
#define INTERACTION_PRIME 16777619ULL

/* MurmurHash3_x86_32, a public-domain function by Austin Appleby. */
static uint32_t murmur(const char *text, Py_ssize_t size, uint32_t hash)
{
    const uint8_t *bytes = (const uint8_t *)text;
    Py_ssize_t blocks = size / 4;
    uint32_t k;
    for (Py_ssize_t i = 0; i < blocks; i++) {
        k = (uint32_t)bytes[4 * i] | (uint32_t)bytes[4 * i + 1] << 8 |
            (uint32_t)bytes[4 * i + 2] << 16 | (uint32_t)bytes[4 * i + 3] << 24;
        k *= 0xcc9e2d51u;
        k = k << 15 | k >> 17;
        hash ^= k * 0x1b873593u;
        hash = (hash << 13 | hash >> 19) * 5 + 0xe6546b64u;
    }
    k = 0;
    switch (size & 3) {
    case 3: k ^= (uint32_t)bytes[4 * blocks + 2] << 16; /* fall through */
    case 2: k ^= (uint32_t)bytes[4 * blocks + 1] << 8;  /* fall through */
    case 1:
        k ^= (uint32_t)bytes[4 * blocks];
        k *= 0xcc9e2d51u;
        k = k << 15 | k >> 17;
        hash ^= k * 0x1b873593u;
    }
    hash ^= (uint32_t)size;
    hash ^= hash >> 16;
    hash *= 0x85ebca6bu;
    hash ^= hash >> 13;
    hash *= 0xc2b2ae35u;
    return hash ^ hash >> 16;
}

/* Features while they are being collected. */
typedef struct {
    uint32_t seed;
    Py_ssize_t count, room;
    uint64_t *indices;
    float *values;
    Py_ssize_t path_size;
    char path[MAX_PATH];
} Group;

/* How a step ended: UNUSUAL is for Python to look at, FAILED has set an exception. */
typedef enum { DONE, UNUSUAL, FAILED } Outcome;

static Outcome add(Group *group, uint32_t index, double value)
{
    /* Written so that NaN is too large. */
    if (!(fabs(value) <= FLT_MAX))
        return UNUSUAL;
    if (group->count == group->room) {
        Py_ssize_t room = 2 * group->room;
        uint64_t *indices = PyMem_Realloc(group->indices, (size_t)room * sizeof *indices);
        if (indices)
            group->indices = indices;
        float *values = PyMem_Realloc(group->values, (size_t)room * sizeof *values);
        if (values)
            group->values = values;
        if (!indices || !values) {
            PyErr_NoMemory();
            return FAILED;
        }
        group->room = room;
    }
    group->indices[group->count] = index;
    group->values[group->count] = (float)value;
    group->count++;
    return DONE;
}

/* Put text at the end of the path. */
static Outcome extend(Group *group, const char *text, Py_ssize_t size)
{
    if (size > MAX_PATH - group->path_size)
        return UNUSUAL;
    memcpy(group->path + group->path_size, text, (size_t)size);
    group->path_size += size;
    return DONE;
}

static Outcome extend_by(Group *group, PyObject *text)
{
    Py_ssize_t size;
    const char *bytes = PyUnicode_AsUTF8AndSize(text, &size);
    if (!bytes) {
        /* A lone surrogate. */
        PyErr_Clear();
        return UNUSUAL;
    }
    return extend(group, bytes, size);
}

static Outcome add_here(Group *group, double value)
{
    return add(group, murmur(group->path, group->path_size, group->seed), value);
}

/* A category: the path, an equals sign and the text. */
static Outcome add_word(Group *group, PyObject *text)
{
    Py_ssize_t before = group->path_size;
    Outcome outcome = extend(group, "=", 1);
    if (outcome == DONE)
        outcome = extend_by(group, text);
    if (outcome == DONE)
        outcome = add_here(group, 1.0);
    group->path_size = before;
    return outcome;
}

static int as_number(PyObject *item, double *number)
{
    if (PyFloat_CheckExact(item))
        *number = PyFloat_AS_DOUBLE(item);
    else if (PyLong_CheckExact(item)) {
        *number = PyLong_AsDouble(item);
        if (*number == -1.0 && PyErr_Occurred()) {
            PyErr_Clear();
            *number = HUGE_VAL;
        }
    }
    else
        return 0;
    return 1;
}

/* A list of numbers is a vector, one of strings a set; others are unusual. */
static Outcome add_list(Group *group, PyObject *list)
{
    Py_ssize_t before = group->path_size, size = PyList_GET_SIZE(list);
    int vector = 1;
    double number = 0.0;
    for (Py_ssize_t i = 0; i < size && vector; i++)
        vector = as_number(PyList_GET_ITEM(list, i), &number);
    for (Py_ssize_t i = 0; i < size; i++) {
        PyObject *item = PyList_GET_ITEM(list, i);
        Outcome outcome;
        if (vector) {
            char place[32];
            int length = snprintf(place, sizeof place, "[%zd]", i);
            as_number(item, &number);
            outcome = extend(group, place, length);
            if (outcome == DONE)
                outcome = add_here(group, number);
            group->path_size = before;
        }
        else if (PyUnicode_CheckExact(item))
            outcome = add_word(group, item);
        else
            outcome = UNUSUAL;
        if (outcome != DONE)
            return outcome;
    }
    return DONE;
}

static int precedes(PyObject *left, PyObject *right)
{
    if (PyUnicode_IS_COMPACT_ASCII(left) && PyUnicode_IS_COMPACT_ASCII(right)) {
        Py_ssize_t a = PyUnicode_GET_LENGTH(left), b = PyUnicode_GET_LENGTH(right);
        int order = memcmp(PyUnicode_1BYTE_DATA(left), PyUnicode_1BYTE_DATA(right),
                           (size_t)(a < b ? a : b));
        return order < 0 || (order == 0 && a < b);
    }
    return PyUnicode_Compare(left, right) < 0;
}

static Outcome add_object(Group *group, PyObject *object, int depth);

static Outcome add_member(Group *group, PyObject *key, PyObject *item, int depth)
{
    Py_ssize_t before = group->path_size;
    double number = 0.0;
    Outcome outcome = before ? extend(group, ".", 1) : DONE;
    if (outcome == DONE)
        outcome = extend_by(group, key);
    if (outcome == DONE) {
        if (as_number(item, &number))
            outcome = add_here(group, number);
        else if (PyUnicode_CheckExact(item))
            outcome = add_word(group, item);
        else if (PyBool_Check(item))
            outcome = add_here(group, item == Py_True);
        else if (PyDict_CheckExact(item))
            outcome = add_object(group, item, depth + 1);
        else if (PyList_CheckExact(item))
            /* Strings in a list are a level deeper. */
            outcome = depth + 1 < MAX_DEPTH ? add_list(group, item) : UNUSUAL;
        else
            outcome = item == Py_None ? DONE : UNUSUAL;
    }
    group->path_size = before;
    return outcome;
}

/* The members in the order of their keys, which is not that of the request. */
static Outcome add_object(Group *group, PyObject *object, int depth)
{
    PyObject *keys[SORTED_IN_PLACE], *key, *item;
    Py_ssize_t size = PyDict_GET_SIZE(object), count = 0, position = 0;
    if (size == 0)
        return DONE;
    if (depth >= MAX_DEPTH || size > SORTED_IN_PLACE)
        return UNUSUAL;
    while (PyDict_Next(object, &position, &key, NULL)) {
        if (!PyUnicode_CheckExact(key))
            return UNUSUAL;
        Py_ssize_t place = count++;
        for (; place > 0 && precedes(key, keys[place - 1]); place--)
            keys[place] = keys[place - 1];
        keys[place] = key;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        item = PyDict_GetItemWithError(object, keys[i]);
        if (!item)
            return PyErr_Occurred() ? FAILED : UNUSUAL;
        Outcome outcome = add_member(group, keys[i], item, depth);
        if (outcome != DONE)
            return outcome;
    }
    return DONE;
}

static PyObject *group_arrays(const Group *group)
{
    npy_intp size = group->count;
    PyObject *indices = PyArray_SimpleNew(1, &size, NPY_UINT64);
    PyObject *values = PyArray_SimpleNew(1, &size, NPY_FLOAT32);
    PyObject *both = indices && values ? PyTuple_Pack(2, indices, values) : NULL;
    if (both) {
        memcpy(PyArray_DATA((PyArrayObject *)indices), group->indices,
               (size_t)size * sizeof *group->indices);
        memcpy(PyArray_DATA((PyArrayObject *)values), group->values,
               (size_t)size * sizeof *group->values);
    }
    Py_XDECREF(indices);
    Py_XDECREF(values);
    return both;
}

PyDoc_STRVAR(encode_doc,
"encode(features, seed, first)\n--\n\n"
"Indices (uint64) and values (float32) of an object's features, after one of index `first` and\n"
"value 1 unless that is None. None if Python has to look at them.");

static PyObject *encode(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    if (nargs != 3 || !PyDict_CheckExact(args[0])) {
        if (nargs == 3)
            Py_RETURN_NONE;
        PyErr_SetString(PyExc_TypeError, "encode takes features, a seed and a first index");
        return NULL;
    }
    unsigned long seed = PyLong_AsUnsignedLong(args[1]);
    unsigned long first = args[2] == Py_None ? 0 : PyLong_AsUnsignedLong(args[2]);
    if (PyErr_Occurred())
        return NULL;
    Group group = {.seed = (uint32_t)seed, .room = PyDict_GET_SIZE(args[0]) + 8};
    group.indices = PyMem_Malloc((size_t)group.room * sizeof *group.indices);
    group.values = PyMem_Malloc((size_t)group.room * sizeof *group.values);
    PyObject *result = NULL;
    if (!group.indices || !group.values)
        PyErr_NoMemory();
    else {
        Outcome outcome = args[2] == Py_None ? DONE : add(&group, (uint32_t)first, 1.0);
        if (outcome == DONE)
            outcome = add_object(&group, args[0], 0);
        if (outcome == DONE)
            result = group_arrays(&group);
        else if (outcome == UNUSUAL)
            result = Py_NewRef(Py_None);
    }
    PyMem_Free(group.indices);
    PyMem_Free(group.values);
    return result;
}

/* Whether an object is a contiguous vector of a type. */
static int is_vector(PyObject *object, int type)
{
    return PyArray_Check(object) && PyArray_TYPE((PyArrayObject *)object) == type &&
           PyArray_NDIM((PyArrayObject *)object) == 1 &&
           PyArray_IS_C_CONTIGUOUS((PyArrayObject *)object);
}

static int is_pair(PyObject *pair)
{
    return PyTuple_Check(pair) && PyTuple_GET_SIZE(pair) == 2 &&
           is_vector(PyTuple_GET_ITEM(pair, 0), NPY_UINT64) &&
           is_vector(PyTuple_GET_ITEM(pair, 1), NPY_FLOAT32) &&
           PyArray_SIZE((PyArrayObject *)PyTuple_GET_ITEM(pair, 0)) ==
               PyArray_SIZE((PyArrayObject *)PyTuple_GET_ITEM(pair, 1));
}

/* What scoring takes: a table of weights, and the features of a context and of actions. */
typedef struct {
    const float *weights;
    uint64_t mask;
    const uint64_t *shared;
    const float *values;
    Py_ssize_t width, count;
    PyObject *actions;
} Task;

/* Read a task from weights, a pair and a list of pairs; 0 after setting an exception. */
static int read_task(PyObject *const *args, Task *task)
{
    if (!is_vector(args[0], NPY_FLOAT32) || !is_pair(args[1]) || !PyList_CheckExact(args[2])) {
        PyErr_SetString(PyExc_TypeError, "expected float32 weights, a pair and a list of pairs");
        return 0;
    }
    uint64_t size = (uint64_t)PyArray_SIZE((PyArrayObject *)args[0]);
    if (size == 0 || (size & (size - 1))) {
        PyErr_SetString(PyExc_ValueError, "the number of weights is not a power of two");
        return 0;
    }
    task->weights = PyArray_DATA((PyArrayObject *)args[0]);
    task->mask = size - 1;
    task->shared = PyArray_DATA((PyArrayObject *)PyTuple_GET_ITEM(args[1], 0));
    task->values = PyArray_DATA((PyArrayObject *)PyTuple_GET_ITEM(args[1], 1));
    task->width = PyArray_SIZE((PyArrayObject *)PyTuple_GET_ITEM(args[1], 0));
    task->actions = args[2];
    task->count = PyList_GET_SIZE(args[2]);
    for (Py_ssize_t a = 0; a < task->count; a++)
        if (!is_pair(PyList_GET_ITEM(args[2], a))) {
            PyErr_SetString(PyExc_TypeError, "expected pairs of indices and values as actions");
            return 0;
        }
    return 1;
}

/* Score all actions of a task; 0 after setting an exception. */
static int score_into(const Task *task, double *out)
{
    const float *weights = task->weights, *values = task->values;
    uint64_t mask = task->mask;
    Py_ssize_t width = task->width;
    uint64_t *hashed = PyMem_Malloc(((size_t)width + 1) * sizeof *hashed);
    if (!hashed) {
        PyErr_NoMemory();
        return 0;
    }
    double base = 0.0;
    for (Py_ssize_t i = 0; i < width; i++) {
        hashed[i] = task->shared[i] * INTERACTION_PRIME;
        base += (double)weights[task->shared[i] & mask] * values[i];
    }
    for (Py_ssize_t a = 0; a < task->count; a++) {
        PyObject *pair = PyList_GET_ITEM(task->actions, a);
        const uint64_t *own = PyArray_DATA((PyArrayObject *)PyTuple_GET_ITEM(pair, 0));
        const float *scale = PyArray_DATA((PyArrayObject *)PyTuple_GET_ITEM(pair, 1));
        Py_ssize_t features = PyArray_SIZE((PyArrayObject *)PyTuple_GET_ITEM(pair, 0));
        double total = base;
        for (Py_ssize_t j = 0; j < features; j++) {
            uint64_t index = own[j];
            double learned = weights[index & mask];
            for (Py_ssize_t i = 0; i < width; i++)
                learned += (double)weights[(hashed[i] ^ index) & mask] * values[i];
            total += learned * scale[j];
        }
        out[a] = total;
    }
    PyMem_Free(hashed);
    return 1;
}

PyDoc_STRVAR(score_doc,
"score(weights, context, actions)\n--\n\n"
"Sums of a float32 table's weights times the values of every action's columns, in float64.\n"
"The table's size is a power of two; `context` and every one of the list `actions` are pairs of\n"
"indices (uint64) and values (float32).");

static PyObject *score(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    Task task;
    if (nargs != 3) {
        PyErr_SetString(PyExc_TypeError, "score takes float32 weights, a pair, a list of pairs");
        return NULL;
    }
    if (!read_task(args, &task))
        return NULL;
    npy_intp count = task.count;
    PyObject *scores = PyArray_SimpleNew(1, &count, NPY_FLOAT64);
    if (scores && !score_into(&task, PyArray_DATA((PyArrayObject *)scores)))
        Py_CLEAR(scores);
    return scores;
}

PyDoc_STRVAR(count_doc,
"count(actions)\n--\n\nHow many features the pairs of a list have together.");

static PyObject *count_features(PyObject *module, PyObject *actions)
{
    (void)module;
    Py_ssize_t total = 0;
    if (!PyList_CheckExact(actions)) {
        PyErr_SetString(PyExc_TypeError, "count takes a list of pairs");
        return NULL;
    }
    for (Py_ssize_t a = 0; a < PyList_GET_SIZE(actions); a++) {
        PyObject *pair = PyList_GET_ITEM(actions, a);
        if (!is_pair(pair)) {
            PyErr_SetString(PyExc_TypeError, "count takes a list of pairs");
            return NULL;
        }
        total += PyArray_SIZE((PyArrayObject *)PyTuple_GET_ITEM(pair, 0));
    }
    return PyLong_FromSsize_t(total);
}

PyDoc_STRVAR(look_up_doc,
"look_up(known, texts)\n--\n\n"
"What a dictionary has for every one of a list of buffers, by its bytes; None for what it lacks.");

static PyObject *look_up(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    if (nargs != 2 || !PyDict_CheckExact(args[0]) || !PyList_CheckExact(args[1])) {
        PyErr_SetString(PyExc_TypeError, "look_up takes a dictionary and a list");
        return NULL;
    }
    Py_ssize_t size = PyList_GET_SIZE(args[1]);
    PyObject *found = PyList_New(size);
    for (Py_ssize_t i = 0; found && i < size; i++) {
        Py_buffer text;
        PyObject *key = NULL, *value = NULL;
        if (PyObject_GetBuffer(PyList_GET_ITEM(args[1], i), &text, PyBUF_SIMPLE) == 0) {
            key = PyBytes_FromStringAndSize(text.buf, text.len);
            PyBuffer_Release(&text);
        }
        if (key) {
            value = PyDict_GetItemWithError(args[0], key);
            if (!value && !PyErr_Occurred())
                value = Py_None;
            Py_DECREF(key);
        }
        if (value)
            PyList_SET_ITEM(found, i, Py_NewRef(value));
        else
            Py_CLEAR(found);
    }
    return found;
}

/* Inverse gap weights of finite scores. */
static void weigh_gaps(const double *scores, Py_ssize_t count, double gamma, double *out)
{
    double best = scores[0], rest = 0.0;
    Py_ssize_t ties = 0;
    for (Py_ssize_t a = 1; a < count; a++)
        best = scores[a] > best ? scores[a] : best;
    for (Py_ssize_t a = 0; a < count; a++) {
        double gap = best - scores[a];
        out[a] = 1.0 / ((double)count + gamma * (gap < DBL_MAX ? gap : DBL_MAX));
        if (scores[a] == best)
            ties++;
        else
            rest += out[a];
    }
    for (Py_ssize_t a = 0; a < count; a++)
        if (scores[a] == best)
            out[a] = (1.0 - rest) / (double)ties;
}

PyDoc_STRVAR(gap_weights_doc,
"gap_weights(scores, gamma)\n--\n\n"
"Inverse gap weights of finite scores (float64), see croupier.policy.exploration.gap_weighting.");

static PyObject *gap_weights(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    if (nargs != 2 || !is_vector(args[0], NPY_FLOAT64) ||
        PyArray_SIZE((PyArrayObject *)args[0]) == 0) {
        PyErr_SetString(PyExc_TypeError, "gap_weights takes float64 scores and gamma");
        return NULL;
    }
    double gamma = PyFloat_AsDouble(args[1]);
    if (PyErr_Occurred())
        return NULL;
    npy_intp count = PyArray_SIZE((PyArrayObject *)args[0]);
    PyObject *pmf = PyArray_SimpleNew(1, &count, NPY_FLOAT64);
    if (pmf)
        weigh_gaps(PyArray_DATA((PyArrayObject *)args[0]), count, gamma,
                   PyArray_DATA((PyArrayObject *)pmf));
    return pmf;
}

/* Index drawn from a pmf at a number in [0, 1), see croupier.policy.sampling. */
static Py_ssize_t draw(const double *pmf, Py_ssize_t count, double number)
{
    double total = 0.0, sum = 0.0;
    Py_ssize_t last = 0;
    for (Py_ssize_t a = 0; a < count; a++) {
        total += pmf[a];
        if (pmf[a] > 0.0)
            last = a;
    }
    for (Py_ssize_t a = 0; a < count; a++) {
        sum += pmf[a];
        if (sum > number * total)
            return pmf[a] > 0.0 ? a : last;
    }
    /* Rounding of the product can reach the last sum itself. */
    return last;
}

static PyObject *as_list(const double *numbers, Py_ssize_t count)
{
    PyObject *list = PyList_New(count);
    for (Py_ssize_t a = 0; list && a < count; a++) {
        PyObject *number = PyFloat_FromDouble(numbers[a]);
        if (number)
            PyList_SET_ITEM(list, a, number);
        else
            Py_CLEAR(list);
    }
    return list;
}

PyDoc_STRVAR(choose_doc,
"choose(weights, context, actions, gamma, number)\n--\n\n"
"Pmf and scores, as lists, and the index drawn at a number in [0, 1): what score and gap_weights\n"
"give, and a draw from it. None if a score is not finite or there are no actions.");

static PyObject *choose(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    Task task;
    if (nargs != 5) {
        PyErr_SetString(PyExc_TypeError, "choose takes what score takes and two numbers");
        return NULL;
    }
    double gamma = PyFloat_AsDouble(args[3]), number = PyFloat_AsDouble(args[4]);
    if (PyErr_Occurred() || !read_task(args, &task))
        return NULL;
    if (task.count == 0)
        Py_RETURN_NONE;
    double *scores = PyMem_Malloc(2 * (size_t)task.count * sizeof *scores);
    if (!scores)
        return PyErr_NoMemory();
    double *pmf = scores + task.count;
    PyObject *chosen = NULL;
    if (score_into(&task, scores)) {
        int finite = 1;
        for (Py_ssize_t a = 0; a < task.count; a++)
            finite &= isfinite(scores[a]) != 0;
        if (finite) {
            weigh_gaps(scores, task.count, gamma, pmf);
            chosen = Py_BuildValue("NNn", as_list(pmf, task.count), as_list(scores, task.count),
                                   draw(pmf, task.count, number));
        }
        else
            chosen = Py_NewRef(Py_None);
    }
    PyMem_Free(scores);
    return chosen;
}

static PyMethodDef methods[] = {
    {"encode", (PyCFunction)(void (*)(void))encode, METH_FASTCALL, encode_doc},
    {"choose", (PyCFunction)(void (*)(void))choose, METH_FASTCALL, choose_doc},
    {"count", count_features, METH_O, count_doc},
    {"look_up", (PyCFunction)(void (*)(void))look_up, METH_FASTCALL, look_up_doc},
    {"gap_weights", (PyCFunction)(void (*)(void))gap_weights, METH_FASTCALL, gap_weights_doc},
    {"score", (PyCFunction)(void (*)(void))score, METH_FASTCALL, score_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_kernel", "Inner loops of a decision, compiled.", -1, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernel(void)
{
    import_array();
    return PyModule_Create(&definition);
}
