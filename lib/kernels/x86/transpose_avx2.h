/* SPDX-License-Identifier: Apache-2.0 */
/* transpose_avx2.h - rows to lanes, for files of AVX2 that read row-major memory. */
#ifndef BXN_TRANSPOSE_AVX2_H
#define BXN_TRANSPOSE_AVX2_H

#include "kernels/x86/vec_avx2.h"

/* v[i] lane r = in[r * ld + i] for 8 rows and four columns. */
BXN_INLINE void transpose_8x4(const float *in, size_t ld, __m256 v[4])
{
    __m256 row[4];
    BXN_UNROLL
    for (unsigned i = 0; i < 4; i++) {
        const float *p = in + i * ld;
        row[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)),
                                      _mm_loadu_ps(p + 4 * ld), 1);
    }
    __m256d low01 = _mm256_castps_pd(_mm256_unpacklo_ps(row[0], row[1]));
    __m256d low23 = _mm256_castps_pd(_mm256_unpacklo_ps(row[2], row[3]));
    __m256d high01 = _mm256_castps_pd(_mm256_unpackhi_ps(row[0], row[1]));
    __m256d high23 = _mm256_castps_pd(_mm256_unpackhi_ps(row[2], row[3]));
    v[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(low01, low23));
    v[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low01, low23));
    v[2] = _mm256_castpd_ps(_mm256_unpacklo_pd(high01, high23));
    v[3] = _mm256_castpd_ps(_mm256_unpackhi_pd(high01, high23));
}

#endif
