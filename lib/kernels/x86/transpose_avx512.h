/* SPDX-License-Identifier: Apache-2.0 */
/* transpose_avx512.h - rows to lanes, for files of AVX-512 that read row-major memory. */
#ifndef BXN_TRANSPOSE_AVX512_H
#define BXN_TRANSPOSE_AVX512_H

#include "kernels/x86/vec_avx512.h"

/* v[i] lane r = in[r * ld + i] for 16 rows and four columns. A vector is gathered from four
 * rows by loads under masks, which need no shuffle port; what is left are transposes of
 * four by four within 128 bits. */
BXN_INLINE void transpose_16x4(const float *in, size_t ld, __m512 v[4])
{
    __m512 row[4];
    BXN_UNROLL
    for (unsigned i = 0; i < 4; i++) {
        const float *p = in + i * ld;
        __m512 r = _mm512_castps128_ps512(_mm_loadu_ps(p));
        r = _mm512_mask_broadcast_f32x4(r, 0x00F0, _mm_loadu_ps(p + 4 * ld));
        r = _mm512_mask_broadcast_f32x4(r, 0x0F00, _mm_loadu_ps(p + 8 * ld));
        row[i] = _mm512_mask_broadcast_f32x4(r, 0xF000, _mm_loadu_ps(p + 12 * ld));
    }
    __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(row[0], row[1]));
    __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(row[2], row[3]));
    __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(row[0], row[1]));
    __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(row[2], row[3]));
    v[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23));
    v[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23));
    v[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23));
    v[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23));
}

#endif
