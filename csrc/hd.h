// Functions that the processor's code and the device's share.
#pragma once

#ifdef __CUDACC__
#define UOT_HD __host__ __device__ inline
#else
#define UOT_HD inline
#endif
