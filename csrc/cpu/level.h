// What a file that is compiled once per instruction set begins with: UOT_LEVEL names the namespace, UOT_VECTOR_BYTES the
// register.  Then, inside its anonymous namespace, it includes simd.h and what it needs of the other headers: a template or
// inline function outside could be merged by the linker into code for a lesser machine.
#pragma once

#include <cmath>
#include <type_traits>

#if defined(__AVX512DQ__)
#include <immintrin.h>
#endif

#include "job.h"

#ifndef UOT_LEVEL
#error "compile with -DUOT_LEVEL=baseline|avx2|avx512 -DUOT_VECTOR_BYTES=16|32|64"
#endif
