/* The inner loops of a decision, compiled: encoding features, scoring, errors of scores, inverse gap
 * weighting, drawing.
 *
 * This is croupier/policy/encoding.py over again, for what nearly all requests are, and gives the
 * same indices and values in the same order; and so are croupier/policy/exploration/gap_weighting.py
 * and croupier/policy/sampling.py. Whatever is unusual or wrong is left to Python: encode, choose and
 * variances return None for it. tests/policy/test_kernel.py holds the two to be equal.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#include <numpy/arrayobject.h>
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DEPTH 8
#define MAX_PATH 1024
#define SORTED_IN_PLACE 64
#define INTERACTION_PRIME 16777619ULL
/* A variance next to what its terms can be at most: below, rounding counts. */
#define ROUNDED 1e-11

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

/* What scoring takes: a table of weights, single or double, and the features of a context and of
 * actions. */
typedef struct {
    const float *weights;
    const double *precise;
    uint64_t mask;
    const uint64_t *shared;
    const float *values;
    Py_ssize_t width, count;
    PyObject *actions;
} Task;

/* Read a task from a table of a type, a pair and a list of pairs; 0 after setting an exception. */
static int read_task(PyObject *table, PyObject *context, PyObject *actions, int type, Task *task)
{
    if (!is_vector(table, type) || !is_pair(context) || !PyList_CheckExact(actions)) {
        PyErr_SetString(PyExc_TypeError, "expected a table, a pair and a list of pairs");
        return 0;
    }
    uint64_t size = (uint64_t)PyArray_SIZE((PyArrayObject *)table);
    if (size == 0 || (size & (size - 1))) {
        PyErr_SetString(PyExc_ValueError, "the size of the table is not a power of two");
        return 0;
    }
    task->weights = type == NPY_FLOAT32 ? PyArray_DATA((PyArrayObject *)table) : NULL;
    task->precise = type == NPY_FLOAT64 ? PyArray_DATA((PyArrayObject *)table) : NULL;
    task->mask = size - 1;
    task->shared = PyArray_DATA((PyArrayObject *)PyTuple_GET_ITEM(context, 0));
    task->values = PyArray_DATA((PyArrayObject *)PyTuple_GET_ITEM(context, 1));
    task->width = PyArray_SIZE((PyArrayObject *)PyTuple_GET_ITEM(context, 0));
    task->actions = actions;
    task->count = PyList_GET_SIZE(actions);
    for (Py_ssize_t a = 0; a < task->count; a++)
        if (!is_pair(PyList_GET_ITEM(actions, a))) {
            PyErr_SetString(PyExc_TypeError, "expected pairs of indices and values as actions");
            return 0;
        }
    return 1;
}

/* The weight of a column. */
static inline double weight_at(const Task *task, uint64_t index)
{
    return task->weights ? (double)task->weights[index & task->mask]
                         : task->precise[index & task->mask];
}

/* Score all actions of a task; 0 after setting an exception. */
static int score_into(const Task *task, double *out)
{
    const float *values = task->values;
    Py_ssize_t width = task->width;
    uint64_t *hashed = PyMem_Malloc(((size_t)width + 1) * sizeof *hashed);
    if (!hashed) {
        PyErr_NoMemory();
        return 0;
    }
    double base = 0.0;
    for (Py_ssize_t i = 0; i < width; i++) {
        hashed[i] = task->shared[i] * INTERACTION_PRIME;
        base += weight_at(task, task->shared[i]) * values[i];
    }
    for (Py_ssize_t a = 0; a < task->count; a++) {
        PyObject *pair = PyList_GET_ITEM(task->actions, a);
        const uint64_t *own = PyArray_DATA((PyArrayObject *)PyTuple_GET_ITEM(pair, 0));
        const float *scale = PyArray_DATA((PyArrayObject *)PyTuple_GET_ITEM(pair, 1));
        Py_ssize_t features = PyArray_SIZE((PyArrayObject *)PyTuple_GET_ITEM(pair, 0));
        double total = base;
        for (Py_ssize_t j = 0; j < features; j++) {
            uint64_t index = own[j];
            double learned = weight_at(task, index);
            for (Py_ssize_t i = 0; i < width; i++)
                learned += weight_at(task, hashed[i] ^ index) * values[i];
            total += learned * scale[j];
        }
        out[a] = total;
    }
    PyMem_Free(hashed);
    return 1;
}

PyDoc_STRVAR(score_doc,
"score(weights, context, actions)\n--\n\n"
"Sums of a table's weights (float32 or float64) times the values of every action's columns, in\n"
"float64. The table's size is a power of two; `context` and every one of the list `actions` are\n"
"pairs of indices (uint64) and values (float32).");

static PyObject *score(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    Task task;
    if (nargs != 3) {
        PyErr_SetString(PyExc_TypeError, "score takes a table, a pair, a list of pairs");
        return NULL;
    }
    int type = is_vector(args[0], NPY_FLOAT64) ? NPY_FLOAT64 : NPY_FLOAT32;
    if (!read_task(args[0], args[1], args[2], type, &task))
        return NULL;
    npy_intp count = task.count;
    PyObject *scores = PyArray_SimpleNew(1, &count, NPY_FLOAT64);
    if (scores && !score_into(&task, PyArray_DATA((PyArrayObject *)scores)))
        Py_CLEAR(scores);
    return scores;
}

/* Which part of a linear model a column belongs to, see PARTS in croupier/policy/encoding.py. */
static inline int part_of(int constant, int named) { return (named ? 0 : 2) + (constant ? 0 : 1); }

/* Columns of a decision that never occurred in training, action by action. */
typedef struct {
    uint64_t index;
    Py_ssize_t action;
    double value;
    int part;
} Unseen;

static int by_index_and_action(const void *left, const void *right)
{
    const Unseen *a = left, *b = right;
    if (a->index != b->index)
        return a->index < b->index ? -1 : 1;
    return (a->action > b->action) - (a->action < b->action);
}

/* Add the prior's variances of unseen columns: those of one index are one column, of its lowest part. */
static void add_unseen(Unseen *unseen, Py_ssize_t count, const double *precisions, double *out)
{
    qsort(unseen, (size_t)count, sizeof *unseen, by_index_and_action);
    for (Py_ssize_t first = 0, end; first < count; first = end) {
        int part = unseen[first].part;
        for (end = first + 1; end < count && unseen[end].index == unseen[first].index; end++)
            part = unseen[end].part < part ? unseen[end].part : part;
        for (Py_ssize_t at = first; at < end;) {
            Py_ssize_t action = unseen[at].action;
            double sum = 0.0;
            for (; at < end && unseen[at].action == action; at++)
                sum += unseen[at].value;
            out[action] += sum * sum / precisions[part];
        }
    }
}

/* The posterior of a linear regression: covariances of the m columns that occurred, and which of
 * these a column of the table is, -1 for none. */
typedef struct {
    const int32_t *places;
    const double *covariance, *precisions;
    Py_ssize_t size;
    int action_id;
} Posterior;

/* Columns of one action while they are gathered. */
typedef struct {
    int32_t *places;
    double *values;
    Py_ssize_t known, unknown;
    Unseen *unseen;
    int outside;
} Columns;

static inline void gather(Columns *columns, const Posterior *posterior, uint64_t index,
                          Py_ssize_t action, double value, int part)
{
    int32_t place = posterior->places[index];
    if (value == 0.0)
        return;
    if (place >= posterior->size)
        columns->outside = 1;
    else if (place < 0)
        columns->unseen[columns->unknown++] = (Unseen){index, action, value, part};
    else {
        columns->places[columns->known] = place;
        columns->values[columns->known++] = value;
    }
}

/* Variance by known columns, and in `scale` what its rounding is in proportion to. */
static double quadratic(const Posterior *posterior, const Columns *columns, double *scale)
{
    double variance = 0.0, sum = 0.0;
    for (Py_ssize_t i = 0; i < columns->known; i++) {
        const double *row = posterior->covariance + (Py_ssize_t)columns->places[i] * posterior->size;
        double value = columns->values[i], own = row[columns->places[i]], crossed = 0.0;
        for (Py_ssize_t j = 0; j < i; j++)
            crossed += row[columns->places[j]] * columns->values[j];
        variance += value * (2.0 * crossed + value * own);
        sum += fabs(value) * sqrt(own);
    }
    *scale = sum * sum;
    return variance;
}

/* Variances of all actions; UNUSUAL where rounding would spoil one, FAILED for a wrong place. */
static Outcome variances_into(const Task *task, const Posterior *posterior, Columns *columns,
                              double *out, double *scales)
{
    uint64_t mask = task->mask;
    for (Py_ssize_t a = 0; a < task->count; a++) {
        PyObject *pair = PyList_GET_ITEM(task->actions, a);
        const uint64_t *own = PyArray_DATA((PyArrayObject *)PyTuple_GET_ITEM(pair, 0));
        const float *scale = PyArray_DATA((PyArrayObject *)PyTuple_GET_ITEM(pair, 1));
        Py_ssize_t features = PyArray_SIZE((PyArrayObject *)PyTuple_GET_ITEM(pair, 0));
        columns->known = 0;
        for (Py_ssize_t i = 0; i < task->width; i++)
            gather(columns, posterior, task->shared[i] & mask, a, task->values[i], i != 0);
        for (Py_ssize_t j = 0; j < features; j++) {
            int named = posterior->action_id && j == 0;
            gather(columns, posterior, own[j] & mask, a, scale[j], named ? 0 : 2);
            for (Py_ssize_t i = 0; i < task->width; i++)
                gather(columns, posterior, (task->shared[i] * INTERACTION_PRIME ^ own[j]) & mask, a,
                       (double)scale[j] * task->values[i], part_of(i == 0, named));
        }
        out[a] = quadratic(posterior, columns, &scales[a]);
    }
    if (columns->outside) {
        PyErr_SetString(PyExc_ValueError, "a place is outside the matrix");
        return FAILED;
    }
    add_unseen(columns->unseen, columns->unknown, posterior->precisions, out);
    for (Py_ssize_t a = 0; a < task->count; a++)
        /* Written so that NaN is unusual. */
        if (!(out[a] > ROUNDED * scales[a] && out[a] <= DBL_MAX))
            return UNUSUAL;
    return DONE;
}

/* Most columns of an action, and of all of them together. */
static void count_columns(const Task *task, size_t *most, size_t *all)
{
    *most = *all = 0;
    for (Py_ssize_t a = 0; a < task->count; a++) {
        PyObject *pair = PyList_GET_ITEM(task->actions, a);
        size_t features = (size_t)PyArray_SIZE((PyArrayObject *)PyTuple_GET_ITEM(pair, 0));
        size_t width = (size_t)task->width, columns = width + features + width * features;
        *most = columns > *most ? columns : *most;
        *all += columns;
    }
}

static int read_posterior(PyObject *const *args, Posterior *posterior)
{
    PyArrayObject *covariance = (PyArrayObject *)args[1];
    if (!PyArray_Check(args[1]) || PyArray_TYPE(covariance) != NPY_FLOAT64 ||
        PyArray_NDIM(covariance) != 2 || !PyArray_IS_C_CONTIGUOUS(covariance) ||
        PyArray_DIM(covariance, 0) != PyArray_DIM(covariance, 1) ||
        !is_vector(args[2], NPY_FLOAT64) || PyArray_SIZE((PyArrayObject *)args[2]) != 4) {
        PyErr_SetString(PyExc_TypeError, "expected a square float64 matrix and four float64");
        return 0;
    }
    posterior->places = PyArray_DATA((PyArrayObject *)args[0]);
    posterior->covariance = PyArray_DATA(covariance);
    posterior->size = PyArray_DIM(covariance, 0);
    posterior->precisions = PyArray_DATA((PyArrayObject *)args[2]);
    return 1;
}

PyDoc_STRVAR(variances_doc,
"variances(places, covariance, precisions, action_id, context, actions)\n--\n\n"
"Variance of every action's score, float64; None where more than eleven digits would cancel.\n"
"`places` (int32, a power of two of them) are rows of the square matrix `covariance`, or -1 for\n"
"columns that are independent of all others with the precision of their part, of four; the rest is\n"
"as for score, and `action_id` says whether an action's first feature is its id.");

static PyObject *variances(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    Task task;
    Posterior posterior;
    if (nargs != 6) {
        PyErr_SetString(PyExc_TypeError, "variances takes six arguments");
        return NULL;
    }
    posterior.action_id = PyObject_IsTrue(args[3]);
    if (posterior.action_id < 0 || !read_task(args[0], args[4], args[5], NPY_INT32, &task) ||
        !read_posterior(args, &posterior))
        return NULL;
    npy_intp count = task.count;
    size_t most, all;
    count_columns(&task, &most, &all);
    PyObject *result = PyArray_SimpleNew(1, &count, NPY_FLOAT64);
    Columns columns = {
        PyMem_Malloc((most + 1) * sizeof *columns.places),
        PyMem_Malloc((most + 1) * sizeof *columns.values), 0, 0,
        PyMem_Malloc((all + 1) * sizeof *columns.unseen), 0,
    };
    double *scales = PyMem_Malloc(((size_t)count + 1) * sizeof *scales);
    if (result && columns.places && columns.values && columns.unseen && scales) {
        double *out = PyArray_DATA((PyArrayObject *)result);
        Outcome outcome = variances_into(&task, &posterior, &columns, out, scales);
        if (outcome != DONE) {
            Py_DECREF(result);
            result = outcome == FAILED ? NULL : Py_NewRef(Py_None);
        }
    }
    else {
        Py_CLEAR(result);
        PyErr_NoMemory();
    }
    PyMem_Free(columns.places);
    PyMem_Free(columns.values);
    PyMem_Free(columns.unseen);
    PyMem_Free(scales);
    return result;
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
    if (PyErr_Occurred() || !read_task(args[0], args[1], args[2], NPY_FLOAT32, &task))
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
    {"variances", (PyCFunction)(void (*)(void))variances, METH_FASTCALL, variances_doc},
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
