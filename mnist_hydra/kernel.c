/* The hot loops of a training step on a CPU, in float32: what lies between two BatchNorm sums,
 * done in one pass over a sample while it is in the cache. kernel.py compiles this file for one
 * architecture (STAGES); fused.py owns every buffer. Results must never depend on the number of
 * threads. */
#include <stdint.h>
#include <string.h>

typedef float vec __attribute__((vector_size(64))); /* a pixel: 16 channels, zero from co on */
typedef double dvec __attribute__((vector_size(128), aligned(64)));
typedef int32_t ivec __attribute__((vector_size(64)));
typedef uint32_t uvec __attribute__((vector_size(64)));
typedef int16_t halves __attribute__((vector_size(32)));
#define INLINE static inline __attribute__((always_inline))
#define EACH(i, n) for (int i = 0; i < (n); i++)
#define UNROLLED(i, n) _Pragma("GCC unroll 16") EACH(i, n)
enum { CHUNK = 8 }; /* samples summed up together: a constant, so that sums stay the same */

/* A stage: BatchNorm, leaky ReLU, max-pool and dropout of what the stage before left, convolution,
 * leaky ReLU. Sides: raw of its input, in after pooling, out; px: pixels of a row in registers. */
typedef struct {
    int k, pad, ci, co, raw, in, out, px_in, px_out;
    float slope_in, slope_out;
} Shape;
typedef struct {
    const float *images;               /* [n, in, in], the first stage's input; or null and ... */
    const vec *x;                      /* [n, raw, raw], the stage before's y */
    vec *y;                            /* [n, out, out] */
    const vec *weight, *flipped;       /* [k, k, ci]; [k, k, co], turned round, to go back */
    const vec *before, *after;         /* of x, of y: a, b, mean, and factors of 1, y and gy */
    const vec *gy;                     /* gradient of a * y + b, [n, out, out] */
    vec *gx, *gweight;                 /* of x, [n, raw, raw]; zeros [chunks, k, k, ci] or null */
    dvec *sums;                        /* [chunks, 2]: y, y * y; backward: gx, gx * (x - mean) */
    int32_t key[2], threshold;         /* dropout's; threshold 0: none */
    int32_t n, threads;
    float scale;
} Task;

INLINE vec choose(ivec m, vec x, vec y) { return (vec)(((ivec)x & m) | ((ivec)y & ~m)); }
INLINE vec leaky(vec x, vec v, float s) { return s == 1 ? v : choose(x > (vec){}, v, v * s); }

/* What dropout multiplies each pixel by: the generator of layers.keep_mask, two pixels a turn. */
INLINE void dropout(const Task *t, int channels, int64_t first, int count, vec *factor) {
    const uint32_t w = channels / 2;
    const uvec lane = {0, 1, 2,     3,     4,     5,     6,     7,
                       w, w + 1, w + 2, w + 3, w + 4, w + 5, w + 6, w + 7};
    const halves threshold = (halves){} + (int16_t)(t->threshold - 32768);
    for (int i = 0; i < count; i += 2) {
        union { uvec word; halves of[2]; } u;
        u.word = (lane + (uint32_t)(first + i) * w) * 0x9E3779B9u + (uint32_t)t->key[0];
        u.word = ((u.word ^ (u.word >> 16)) * 0x7FEB352Du) ^ (uint32_t)t->key[1];
        u.word = (u.word ^ (u.word >> 15)) * 0x846CA68Bu;
        u.word ^= u.word >> 16;
        UNROLLED(j, 2) factor[i + j] = (vec)((ivec)((vec){} + t->scale) &
            __builtin_convertvector(u.of[j] >= threshold, ivec));
    }
}

/* out [side, side] = in [side + k - 1, w, step floats] * weight [k, k, ci]; meanwhile `ahead`,
 * which the next sample needs, is fetched into the cache, `lines` at a time. */
INLINE void conv(const float *in, int w, int step, int k, int ci, const vec *weight, int side,
                 int px, vec *out, const vec *ahead, int lines) {
    EACH(r, side) for (int x = 0; x < side; x += px) {
        vec acc[14];
        UNROLLED(j, lines) __builtin_prefetch(ahead++);
        UNROLLED(j, px) acc[j] = (vec){};
        EACH(kh, k) EACH(kw, k) EACH(c, ci) {
            const vec v = weight[(kh * k + kw) * ci + c];
            UNROLLED(j, px) acc[j] += in[((r + kh) * w + x + kw + j) * step + c] * v;
        }
        UNROLLED(j, px) out[r * side + x + j] = acc[j];
    }
}

/* grad [k, k, ci] += in [side + k - 1, w, step floats] times g [side, gw] */
INLINE void wgrad(const float *in, int w, int step, int k, int ci, const vec *g, int gw, int side,
                  vec *grad, const vec *ahead[2]) {
    const int many = ci > 1 ? ci : k; /* a row of taps together where there is but one channel */
    EACH(t, k * k * ci / many) {
        const float *from = in + (ci > 1 ? t / k * w + t % k : t * w) * step;
        vec acc[16];
        UNROLLED(j, many) acc[j] = (vec){};
        EACH(r, side) EACH(x, side) {
            if (t < 2) __builtin_prefetch(ahead[t] + r * side + x);
            UNROLLED(j, many) acc[j] += from[(r * w + x) * step + j] * g[r * gw + x];
        }
        UNROLLED(j, many) grad[t * many + j] += acc[j];
    }
}

/* The largest of a * x + b at x and the three pixels beside and below, and which one it is. */
INLINE ivec largest(const vec *x, int w, int pool, vec a, vec b, vec *u) {
    ivec where = {};
    *u = *x * a + b;
    if (pool == 2) UNROLLED(j, 3) {
        const vec v = x[(j + 1) / 2 * w + (j + 1) % 2] * a + b;
        const ivec m = v > *u;
        *u = choose(m, v, *u);
        where = (m & (j + 1)) | (where & ~m);
    }
    return where;
}

/* The convolution's padded input d for sample n; factor: of activation and dropout, together. */
INLINE void input(Shape f, const Task *t, int64_t n, vec *d, vec *factor) {
    const int w = f.in + 2 * f.pad, pool = f.raw / f.in;
    float *const to = (float *)d + (f.pad * w + f.pad) * (f.ci > 1 ? 16 : 1);
    if (f.ci == 1) {
        EACH(r, f.in) memcpy(to + r * w, t->images + (n * f.in + r) * f.in, f.in * 4);
        return;
    }
    if (t->threshold) dropout(t, f.ci, n * f.in * f.in, f.in * f.in, factor);
    else EACH(i, f.in * f.in) factor[i] = (vec){} + 1;
    const vec *x = t->x + n * f.raw * f.raw, a = t->before[0], b = t->before[1];
    EACH(r, f.in) EACH(c, f.in) {
        vec u, *v = factor + r * f.in + c;
        largest(x + (r * f.raw + c) * pool, f.raw, pool, a, b, &u);
        *v = leaky(u, *v, f.slope_in);
        ((vec *)to)[r * w + c] = u * *v;
    }
}

INLINE void forward_chunk(Shape f, const Task *t, int64_t n, int64_t end, dvec *sums) {
    const int w = f.in + 2 * f.pad, area = f.out * f.out, raw = f.ci > 1 ? f.raw * f.raw : 0;
    vec d[w * w], factor[f.in * f.in + 1];
    memset(d, 0, sizeof d);
    for (; n < end; n++) {
        vec *y = t->y + n * area, sum = {}, squares = {};
        input(f, t, n, d, factor);
        conv((float *)d, w, f.ci > 1 ? 16 : 1, f.k, f.ci, t->weight, f.out, f.px_out, y,
             t->x + (n + 1) * raw, raw * f.px_out / area);
        EACH(i, area) {
            y[i] = leaky(y[i], y[i], f.slope_out);
            sum += y[i];
            squares += y[i] * y[i];
        }
        sums[0] += __builtin_convertvector(sum, dvec);
        sums[1] += __builtin_convertvector(squares, dvec);
    }
}

INLINE void backward_chunk(Shape f, const Task *t, int64_t n, int64_t end, vec *grad, dvec *sums) {
    const int w = f.in + 2 * f.pad, q = f.k - 1 - f.pad, gw = f.out + 2 * q, area = f.out * f.out;
    const int pool = f.raw / f.in, raw = f.raw * f.raw;
    vec d[w * w], g[gw * gw], gd[f.in * f.in], factor[f.in * f.in + 1];
    memset(d, 0, sizeof d);
    memset(g, 0, sizeof g);
    for (; n < end; n++) {
        const vec *y = t->y + n * area, *gy = t->gy + n * area, *c = t->after + 3;
        EACH(r, f.out) EACH(x, f.out) {
            const int i = r * f.out + x;
            g[(r + q) * gw + x + q] = leaky(y[i], gy[i] * c[2] + y[i] * c[1] + c[0], f.slope_out);
        }
        input(f, t, n, d, factor);
        if (grad) wgrad((float *)d, w, f.ci > 1 ? 16 : 1, f.k, f.ci, g + q * gw + q, gw, f.out,
                        grad, (const vec *[]){y + area, gy + area});
        if (f.ci == 1) continue;
        const vec *x = t->x + n * raw, a = t->before[0], b = t->before[1], mean = t->before[2];
        vec *gx = t->gx + n * raw, sum = {}, products = {};
        conv((float *)g, gw, 16, f.k, f.co, t->flipped, f.in, f.px_in, gd, x + raw,
             pool * pool * f.px_in);
        if (f.raw % f.in) memset(gx, 0, raw * sizeof *gx);
        EACH(r, f.in) EACH(c, f.in) {
            const int i = (r * f.raw + c) * pool;
            const vec v = gd[r * f.in + c] * factor[r * f.in + c];
            vec u;
            const ivec where = largest(x + i, f.raw, pool, a, b, &u);
            UNROLLED(j, pool * pool) {
                const int o = i + j / 2 * f.raw + j % 2;
                gx[o] = choose(where == j, v, (vec){});
                sum += gx[o];
                products += gx[o] * (x[o] - mean);
            }
        }
        sums[0] += __builtin_convertvector(sum, dvec);
        sums[1] += __builtin_convertvector(products, dvec);
    }
}

#define CHUNKS(call) _Pragma("omp parallel for schedule(dynamic) num_threads(t->threads)") \
    EACH(i, (t->n + CHUNK - 1) / CHUNK) { \
        const int64_t n = (int64_t)i * CHUNK, end = n + CHUNK < t->n ? n + CHUNK : t->n; call; }
#define STAGE(I, ...) \
    void forward_##I(const Task *t) { \
        CHUNKS(forward_chunk((Shape){__VA_ARGS__}, t, n, end, t->sums + 2 * i)) } \
    void backward_##I(const Task *t) { \
        const Shape f = {__VA_ARGS__}; \
        CHUNKS(backward_chunk((Shape){__VA_ARGS__}, t, n, end, \
               t->gweight ? t->gweight + i * f.k * f.k * f.ci : 0, t->sums + 2 * i)) }
STAGES
