/* The search for partners in a tree of boxes, compiled.
 *
 * This is croupier/offline/fairness/partner_search.py over again, and looks into the same boxes in
 * the same order. tests/offline/fairness/test_partner_search.py holds the two to be equal.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define MAX_METRICS 64
#define MAX_DEPTH 64

typedef struct {
    const double *low, *high, *points; /* (leaves, 2, D), the same, (leaves, size, D) */
    const int64_t *members;            /* (leaves, size) */
    const int64_t *ends;               /* where each metric's columns end, (metrics,) */
    const int64_t *judged;             /* sorted keys of pairs that people have judged */
    Py_ssize_t leaves, size, columns, metrics, judged_count, n;
    int votes, total_variation;
    double alpha;
} Tree;

typedef struct {
    int64_t partner, visits, compared;
    double over;
    int given_up;
} Walk;

/* The votes-th smallest of some squared distances, which are put in order. */
static double panel_square(double *squares, Py_ssize_t count, int votes)
{
    for (Py_ssize_t i = 1; i < count; i++) {
        double one = squares[i];
        Py_ssize_t j = i;
        for (; j > 0 && squares[j - 1] > one; j--)
            squares[j] = squares[j - 1];
        squares[j] = one;
    }
    return squares[votes - 1];
}

/* fmax is a call, since it looks for what is no number. */
static double larger(double one, double two)
{
    return one > two ? one : two;
}

static double gap_of(double sum, double largest, int total_variation)
{
    if (!total_variation)
        return largest;
    return sum > 2.0 ? 1.0 : sum / 2.0;
}

/* What a box can hold at most: largest gap less least distance; less than nothing if that gap is
 * too small by itself. */
static double bound(const Tree *tree, const double *point, const double *low, const double *high,
                    double floor)
{
    double squares[MAX_METRICS], sum = 0.0, largest = -DBL_MAX;
    Py_ssize_t at = tree->ends[tree->metrics - 1];
    for (; at < tree->columns; at++) {
        double apart = larger(point[at] - low[at], high[at] - point[at]);
        sum += apart;
        largest = larger(largest, apart);
    }
    double most = gap_of(sum, largest, tree->total_variation) - tree->alpha;
    if (most <= floor)
        return -HUGE_VAL;
    at = 0;
    for (Py_ssize_t m = 0; m < tree->metrics; m++) {
        double square = 0.0;
        for (; at < tree->ends[m]; at++) {
            double outside = larger(larger(low[at] - point[at], point[at] - high[at]), 0.0);
            square += outside * outside;
        }
        squares[m] = square;
    }
    return most - sqrt(panel_square(squares, tree->metrics, tree->votes));
}

/* Gap less distance less alpha of two points, as above. */
static double excess(const Tree *tree, const double *one, const double *two, double floor)
{
    double squares[MAX_METRICS], sum = 0.0, largest = -DBL_MAX;
    Py_ssize_t at = tree->ends[tree->metrics - 1];
    for (; at < tree->columns; at++) {
        double apart = fabs(two[at] - one[at]);
        sum += apart;
        largest = larger(largest, apart);
    }
    double most = gap_of(sum, largest, tree->total_variation) - tree->alpha;
    if (most <= floor)
        return -HUGE_VAL;
    at = 0;
    for (Py_ssize_t m = 0; m < tree->metrics; m++) {
        double square = 0.0;
        for (; at < tree->ends[m]; at++) {
            double apart = two[at] - one[at];
            square += apart * apart;
        }
        squares[m] = square;
    }
    return most - sqrt(panel_square(squares, tree->metrics, tree->votes));
}

static int was_judged(const Tree *tree, int64_t one, int64_t two)
{
    int64_t key = one < two ? one * tree->n + two : two * tree->n + one;
    Py_ssize_t from = 0, to = tree->judged_count;
    while (from < to) {
        Py_ssize_t middle = (from + to) / 2;
        if (tree->judged[middle] < key)
            from = middle + 1;
        else
            to = middle;
    }
    return from < tree->judged_count && tree->judged[from] == key;
}

static Walk walk(const Tree *tree, int64_t row, const double *point, double floor, int any,
                 int64_t most_visits)
{
    int64_t stack[MAX_DEPTH + 2];
    double bounds[MAX_DEPTH + 2];
    Walk found = {-1, 0, 0, -HUGE_VAL, 0};
    int top = 0;
    stack[top] = 1;
    bounds[top++] = HUGE_VAL;
    while (top > 0) {
        int64_t node = stack[--top];
        if (bounds[top] <= floor)
            continue;
        if (found.visits == most_visits) {
            found.given_up = 1;
            break;
        }
        found.visits++;
        if (node >= tree->leaves) {
            Py_ssize_t first = (Py_ssize_t)(node - tree->leaves) * tree->size;
            for (Py_ssize_t i = first; i < first + tree->size; i++) {
                double over = excess(tree, point, tree->points + i * tree->columns, floor);
                if (over > floor && tree->members[i] != row &&
                    !(tree->judged_count && was_judged(tree, row, tree->members[i]))) {
                    floor = found.over = over;
                    found.partner = tree->members[i];
                }
            }
            found.compared += tree->size;
            if (any && found.partner >= 0)
                break;
            continue;
        }
        const double *low = tree->low + 2 * node * tree->columns;
        const double *high = tree->high + 2 * node * tree->columns;
        double one = bound(tree, point, low, high, floor);
        double two = bound(tree, point, low + tree->columns, high + tree->columns, floor);
        int second = two > one;
        double lesser = second ? one : two, greater = second ? two : one;
        if (lesser > floor) {
            stack[top] = 2 * node + 1 - second;
            bounds[top++] = lesser;
        }
        if (greater > floor) {
            stack[top] = 2 * node + second;
            bounds[top++] = greater;
        }
    }
    return found;
}

PyDoc_STRVAR(search_doc,
             "search(low, high, points, members, ends, judged, places, floors, partners, overs,\n"
             "       given_up, shape, alpha, any, most_visits, /) -> compared\n\n"
             "Walk through the tree for each of some places, and write what is found. See\n"
             "croupier.offline.fairness.partner_search.");

static PyObject *search(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer low, high, points, members, ends, judged, places, floors, partners, overs, given_up;
    Py_ssize_t leaves, size, columns, n;
    int votes, total_variation, any;
    double alpha;
    long long most_visits, compared = 0;
    if (!PyArg_ParseTuple(arguments, "y*y*y*y*y*y*y*y*w*w*w*(nnnnii)dpL", &low, &high, &points,
                          &members, &ends, &judged, &places, &floors, &partners, &overs, &given_up,
                          &leaves, &size, &columns, &n, &votes, &total_variation, &alpha, &any,
                          &most_visits))
        return NULL;
    Py_ssize_t count = places.len / (Py_ssize_t)sizeof(int64_t);
    Tree tree = {low.buf, high.buf, points.buf, members.buf, ends.buf, judged.buf, leaves, size,
                 columns, ends.len / (Py_ssize_t)sizeof(int64_t),
                 judged.len / (Py_ssize_t)sizeof(int64_t), n, votes, total_variation, alpha};
    int fits = tree.metrics >= 1 && tree.metrics <= MAX_METRICS && votes >= 1 &&
               votes <= tree.metrics && leaves >= 1 && leaves < (Py_ssize_t)1 << MAX_DEPTH / 2 &&
               low.len == leaves * 2 * columns * (Py_ssize_t)sizeof(double) &&
               high.len == low.len &&
               points.len == leaves * size * columns * (Py_ssize_t)sizeof(double) &&
               members.len == leaves * size * (Py_ssize_t)sizeof(int64_t) &&
               floors.len == places.len && partners.len == places.len &&
               overs.len == places.len && given_up.len == count;
    for (Py_ssize_t i = 0; fits && i < count; i++) {
        int64_t place = ((const int64_t *)places.buf)[i];
        fits = place >= 0 && place < leaves * size;
    }
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t i = 0; i < count; i++) {
            int64_t place = ((const int64_t *)places.buf)[i];
            Walk found = walk(&tree, tree.members[place], tree.points + place * columns,
                              ((const double *)floors.buf)[i], any, most_visits);
            ((int64_t *)partners.buf)[i] = found.partner;
            ((double *)overs.buf)[i] = found.over;
            ((char *)given_up.buf)[i] = (char)found.given_up;
            compared += found.compared;
        }
        Py_END_ALLOW_THREADS
    }
    Py_buffer *all[] = {&low, &high, &points, &members, &ends, &judged, &places, &floors,
                        &partners, &overs, &given_up};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        PyBuffer_Release(all[i]);
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "expected arrays of a tree and of its places");
        return NULL;
    }
    return PyLong_FromLongLong(compared);
}

static PyMethodDef methods[] = {
    {"search", search, METH_VARARGS, search_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_partners", "The search for partners, compiled.", -1, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__partners(void)
{
    return PyModule_Create(&definition);
}
