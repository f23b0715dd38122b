/* The hot loops of a training step on a CPU, in float32: from one BatchNorm's sums to the next, in
 * one pass over a group of samples, row by row. compile.py compiles it for one architecture
 * (STAGES, COUNT of them) and for the width of the CPU's vectors (LANES); fused.py owns all
 * memory. Results never depend on the number of threads; their last digits depend on LANES. */
#include <math.h>
#include <stdint.h>
#include <string.h>

/* A vector holds one value of each sample of a group, whatever the channels. */
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));

#define INLINE static inline __attribute__((always_inline))
#define BLOCKS(i, n, size) for (int i = 0; i < (n); i += (size))
#define EACH(i, n) BLOCKS(i, n, 1)
#ifdef __clang__
#define UNROLLED(i, n) _Pragma("clang loop unroll(full)") EACH(i, n)
#else
#define UNROLLED(i, n) _Pragma("GCC unroll 16") EACH(i, n)
#endif
#if defined __clang__ || defined __AVX512F__
#define COLUMNS UNROLLED /* of a convolution's window */
#else
#define COLUMNS EACH /* unrolled, gcc runs out of registers where there are only 16 */
#endif

enum { CHANNELS = 16 };   /* that a table of BatchNorm's has room for */
enum { MOST_SUMS = 32 };  /* that a block ever has */
enum { A, B, MEAN, VAR, RSTD, GAMMA, BETA, C0, C1, C2, DGAMMA, DBETA }; /* a table's rows */
typedef float table[CHANNELS];

/* A stage: BatchNorm, leaky ReLU, max-pool and dropout of what the stage before left, convolution,
 * leaky ReLU. All of it is constant, so that the compiler knows every loop's length. */
typedef struct {
    int k, pad, ci, co;         /* of the convolution */
    int raw, in, out;           /* sides: of the input, after pooling, of the output */
    int px_out, many_out;       /* a block of sums, forward: pixels, channels of the output */
    int px_in, many_in;         /* the same, backward, of the input */
    int many_taps;              /* output channels of a block of sums of the weight's gradient */
    float slope_in, slope_out;  /* of the leaky ReLUs; 1 for none */
} Shape;

/* One call's work. Samples beyond the last one are zeros, and are counted nowhere. */
typedef struct {
    const vec *x;           /* [groups, raw, ci, raw]: the stage before's y, or the images */
    const vec *gy;          /* [groups, out, co, out]: what BatchNorm's gradient after y is made of */
    vec *y;                 /* [groups, out, co, out] */
    vec *gx;                /* [groups, raw, ci, raw]: the gradient of A * x + B */
    const float *weight;    /* [co, ci, k, k] */
    float *gweight;         /* its gradient, `stride` apart per group; the total in the first */
    table *before, *after;  /* of x and of y: A * y + B; the gradient of y is C0 + C1 * y + C2 * gy */
    double (*sums)[2][CHANNELS]; /* [groups]: of y and y * y; back: of gx and gx * (x - MEAN) */
    int64_t stride;
    int32_t n, threads;          /* samples */
    int32_t threshold, key[2];   /* dropout's; threshold 0: none */
    float scale;                 /* 1 / (1 - rate) */
    float eps_x, eps_y;          /* BatchNorm's, or negative where there is none */
} Task;

INLINE int groups(const Task *t) { return (t->n + LANES - 1) / LANES; }

INLINE vec choose(ivec mask, vec yes, vec no) {
    return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask));
}

/* v where x is positive, slope * v elsewhere */
INLINE vec leaky(vec x, vec v, float slope) {
    return slope == 1 ? v : choose(x > (vec){}, v, v * slope);
}

INLINE ivec lane_numbers(void) {
    ivec numbers = {};
    UNROLLED(i, LANES) numbers[i] = i;
    return numbers;
}

/* Which lanes of a group hold a sample. */
INLINE ivec real(const Task *t, int group) {
    return lane_numbers() < (ivec){} + (t->n - group * LANES);
}

INLINE double total(vec v) {
    double sum = 0;
    UNROLLED(i, LANES) sum += v[i];
    return sum;
}

/* What dropout multiplies two channels of a pixel by: the generator of layers.keep_mask. */
INLINE void dropout(const Task *t, uvec word, vec factor[2]) {
    const ivec threshold = (ivec){} + (int32_t)((uint32_t)(t->threshold - 32768) << 16);
    word = word * 0x9E3779B9u + (uint32_t)t->key[0];
    word = ((word ^ (word >> 16)) * 0x7FEB352Du) ^ (uint32_t)t->key[1];
    word = (word ^ (word >> 15)) * 0x846CA68Bu;
    word ^= word >> 16;
    factor[0] = choose((ivec)(word << 16) >= threshold, (vec){} + t->scale, (vec){});
    factor[1] = choose((ivec)word >= threshold, (vec){} + t->scale, (vec){});
}

/* Row `row` of a convolution: out [co, out] of k rows [ci, out + k - 1] in a ring; or on the way
 * back [ci, in] of [co, in + k - 1]. Meanwhile `lines` from `ahead` on come into the cache. */
INLINE void conv(Shape f, int back, const vec *ring, int row, const float *weight, vec *out,
                 const vec *ahead, int lines) {
    const int from = back ? f.co : f.ci, to = back ? f.ci : f.co, side = back ? f.in : f.out;
    const int px = back ? f.px_in : f.px_out, many = back ? f.many_in : f.many_out;
    const int kk = f.k * f.k, per_to = back ? kk : f.ci * kk, per_from = back ? f.ci * kk : kk;
    BLOCKS(x, side, px) BLOCKS(o, to, many) {
        vec acc[MOST_SUMS] = {};
        EACH(i, (lines * px * many - 1) / (side * to) + 1) __builtin_prefetch(ahead++, 0, 2);
        EACH(kh, f.k) EACH(c, from) COLUMNS(kw, f.k) {
            const vec *v = ring + ((row + kh) % f.k * from + c) * (side + f.k - 1) + x + kw;
            const int tap = back ? kk - 1 - kh * f.k - kw : kh * f.k + kw;
            const float *w = weight + o * per_to + c * per_from + tap;
            UNROLLED(i, many) UNROLLED(j, px) acc[i * px + j] += v[j] * w[i * per_to];
        }
        UNROLLED(i, many) UNROLLED(j, px) out[(o + i) * side + x + j] = acc[i * px + j];
    }
}

/* grad [co, ci, k, k] += rows [ci, out + k - 1] of a ring, from `row` on, times g [co, gw] */
INLINE void weight_gradient(Shape f, const vec *ring, int row, const vec *g, int gw, vec *grad) {
    const int many = f.many_taps, taps = f.ci * f.k * f.k;
    EACH(c, f.ci) EACH(kh, f.k) BLOCKS(o, f.co, many) {
        const vec *in = ring + ((row + kh) % f.k * f.ci + c) * (f.out + f.k - 1);
        vec acc[MOST_SUMS] = {}, *to = grad + o * taps + (c * f.k + kh) * f.k;
        EACH(x, f.out) {
            UNROLLED(i, many) UNROLLED(j, f.k) acc[i * f.k + j] += in[x + j] * g[(o + i) * gw + x];
        }
        UNROLLED(i, many) UNROLLED(j, f.k) to[i * taps + j] += acc[i * f.k + j];
    }
}

/* The largest of A * x + B at x and, where the stage pools, the three pixels beside and below; and
 * which one it is. */
INLINE ivec largest(Shape f, const Task *t, const vec *x, int c, vec *u) {
    const float a = t->before[A][c], b = t->before[B][c];
    ivec where = {};
    *u = *x * a + b;
    if (f.raw / f.in == 2) {
        UNROLLED(j, 3) {
            const vec v = x[(j + 1) / 2 * f.ci * f.raw + (j + 1) % 2] * a + b;
            const ivec larger = v > *u;
            *u = choose(larger, v, *u);
            where = (larger & (j + 1)) | (where & ~larger);
        }
    }
    return where;
}

/* Padded row r of the convolution's input [ci, w], and what its activation and dropout multiply by
 * [ci, in]: each into its ring of k rows. */
INLINE void input_row(Shape f, const Task *t, int group, int r, vec *ring, vec *factors) {
    const int pool = f.raw / f.in, i = r - f.pad, w = f.in + 2 * f.pad;
    vec *row = ring + r % f.k * f.ci * w, *factor = factors + r % f.k * f.ci * f.in;
    const vec *x = t->x + ((int64_t)group * f.raw + i * pool) * f.ci * f.raw;
    if (i < 0 || i >= f.in) {
        memset(row, 0, f.ci * w * sizeof *row);
        return;
    }
    BLOCKS(c, f.ci, 2) EACH(p, f.in) {
        const uvec pixel = (uvec)((lane_numbers() + group * LANES) * (f.in * f.in) + i * f.in + p);
        vec u, keep[2] = {(vec){} + 1, (vec){} + 1};
        if (t->threshold) dropout(t, pixel * (f.ci / 2) + c / 2, keep);
        for (int h = c; h < c + 2 && h < f.ci; h++) {
            largest(f, t, x + h * f.raw + p * pool, h, &u);
            factor[h * f.in + p] = leaky(u, keep[h - c], f.slope_in);
            row[h * w + f.pad + p] = u * factor[h * f.in + p];
        }
    }
}

INLINE void forward_group(Shape f, const Task *t, int group) {
    const int w = f.in + 2 * f.pad, rows = f.k * f.ci, lines = f.raw / f.in * f.ci * f.raw;
    vec ring[rows * w], factors[rows * f.in], sum[CHANNELS] = {}, squares[CHANNELS] = {};
    memset(ring, 0, sizeof ring);
    for (int r = 0, ready = 0; r < f.out; r++) {
        vec *y = t->y + ((int64_t)group * f.out + r) * f.co * f.out;
        for (; ready < r + f.k; ready++) input_row(f, t, group, ready, ring, factors);
        const vec *ahead = t->x + (int64_t)group * f.raw * f.ci * f.raw + (ready - f.pad) * lines;
        conv(f, 0, ring, r, t->weight, y, ahead, lines);
        EACH(c, f.co) EACH(x, f.out) {
            const vec v = leaky(y[c * f.out + x], y[c * f.out + x], f.slope_out);
            const vec counted = choose(real(t, group), v, (vec){});
            y[c * f.out + x] = v;
            sum[c] += counted;
            squares[c] += counted * counted;
        }
    }
    EACH(c, f.co) {
        t->sums[group][0][c] = total(sum[c]);
        t->sums[group][1][c] = total(squares[c]);
    }
}

INLINE void backward_group(Shape f, const Task *t, int group) {
    const int q = f.k - 1 - f.pad; /* what the way back pads */
    const int gw = f.out + 2 * q, rows = f.k * f.ci, taps = rows * f.k;
    const int pool = f.raw / f.in, lines = pool * f.ci * f.raw;
    const int64_t first = (int64_t)group * f.raw * f.ci * f.raw;
    const vec *x = t->x + first;
    vec *gx = t->gx + first;
    vec ring[rows * (f.in + 2 * f.pad)], factors[rows * f.in], g[f.k * f.co * gw], gd[f.ci * f.in];
    vec grad[f.co * taps], sum[CHANNELS] = {}, products[CHANNELS] = {};
    memset(ring, 0, sizeof ring);
    memset(g, 0, sizeof g);
    memset(grad, 0, sizeof grad);
    if (f.raw % f.in) memset(gx, 0, f.raw * f.ci * f.raw * sizeof *gx);
    for (int p = 0, ready = 0; p < gw; p++) {
        const int o = p - q, back = p - f.k + 1;
        vec *to = g + p % f.k * f.co * gw;
        if (o < 0 || o >= f.out) {
            memset(to, 0, f.co * gw * sizeof *to);
        } else {
            EACH(c, f.co) EACH(i, f.out) {
                const int64_t at = (((int64_t)group * f.out + o) * f.co + c) * f.out + i;
                const vec y = t->y[at], v = t->gy[at] * t->after[C2][c] + y * t->after[C1][c];
                const vec gradient = leaky(y, v + t->after[C0][c], f.slope_out);
                to[c * gw + q + i] = choose(real(t, group), gradient, (vec){});
            }
            for (; ready < o + f.k; ready++) input_row(f, t, group, ready, ring, factors);
            weight_gradient(f, ring, o, to + q, gw, grad);
        }
        if (f.ci == 1 || back < 0) continue; /* images need no gradient */
        conv(f, 1, g, back, t->weight, gd, x + (ready - f.pad) * lines, lines);
        EACH(c, f.ci) EACH(i, f.in) {
            const int at = back * lines + c * f.raw + i * pool;
            vec u, v = gd[c * f.in + i] * factors[((back + f.pad) % f.k * f.ci + c) * f.in + i];
            const ivec where = largest(f, t, x + at, c, &u);
            UNROLLED(j, pool * pool) {
                const int one = at + j / 2 * f.ci * f.raw + j % 2;
                const vec part = choose(where == j, v, (vec){});
                gx[one] = part;
                sum[c] += part;
                products[c] += part * (x[one] - t->before[MEAN][c]);
            }
        }
    }
    EACH(c, f.ci) {
        t->sums[group][0][c] = total(sum[c]);
        t->sums[group][1][c] = total(products[c]);
    }
    EACH(j, f.co * taps) t->gweight[group * t->stride + j] = total(grad[j]);
}

/* BatchNorm's factors, from the sums of y and y * y. */
INLINE void normalise(table *v, int c, double mean, double square, double count, float eps) {
    const double var = fmax(square - mean * mean, 0);
    v[MEAN][c] = mean;
    v[VAR][c] = var * count / (count - 1);
    v[RSTD][c] = 1 / sqrt(var + eps);
    v[A][c] = v[GAMMA][c] * v[RSTD][c];
    v[B][c] = v[BETA][c] - mean * v[A][c];
}

/* Those of its gradient, from the sums of gx and gx * (x - MEAN). */
INLINE void differentiate(table *v, int c, double sum, double products, double count) {
    v[DGAMMA][c] = products * v[RSTD][c];
    v[DBETA][c] = sum;
    v[C2][c] = v[A][c];
    v[C1][c] = -v[A][c] * v[RSTD][c] * v[RSTD][c] * products / count;
    v[C0][c] = -v[A][c] * sum / count - v[C1][c] * v[MEAN][c];
}

/* Add up what the groups left, always in the same order. */
INLINE void finish(Shape f, const Task *t, int back) {
    const double count = (double)t->n * (back ? f.raw * f.raw : f.out * f.out);
    for (int g = 1; g < groups(t); g++) {
        EACH(i, 2) EACH(c, CHANNELS) t->sums[0][i][c] += t->sums[g][i][c];
        if (!back) continue;
        EACH(j, f.co * f.ci * f.k * f.k) t->gweight[j] += t->gweight[g * t->stride + j];
    }
    EACH(c, CHANNELS) {
        const double first = t->sums[0][0][c], second = t->sums[0][1][c];
        if (back && t->eps_x >= 0) differentiate(t->before, c, first, second, count);
        if (!back && t->eps_y >= 0)
            normalise(t->after, c, first / count, second / count, count, t->eps_y);
    }
}

#ifdef _OPENMP
#define THREADED _Pragma("omp parallel for schedule(dynamic) num_threads(t->threads)")
const int parallel = 1;
#else
#define THREADED
const int parallel = 0;
#endif
const int lanes = LANES, stages = COUNT;

#define STAGE(I, ...)                                       \
    static const Shape f##I = {__VA_ARGS__};                \
    void forward_##I(const Task *t) {                       \
        THREADED EACH(g, groups(t)) forward_group(f##I, t, g);  \
        finish(f##I, t, 0);                                 \
    }                                                       \
    void backward_##I(const Task *t) {                      \
        THREADED EACH(g, groups(t)) backward_group(f##I, t, g); \
        finish(f##I, t, 1);                                 \
    }
STAGES
