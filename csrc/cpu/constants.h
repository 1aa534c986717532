// Numbers that several files need.
#pragma once

namespace uot {

constexpr double kLog2E = 1.4426950408889634074;
constexpr double kInfinity = __builtin_inf(), kNaN = __builtin_nan("");
// Stands for an infinite potential where that is multiplied by 1 / tau, which may be 0.
constexpr double kHuge = 1e300;
// Column sums of a sweep outside [kWeak, 1 / kWeak], in units of e^shift, may have lost terms to underflow; and those
// below kLost times the rows and the heaviest row's sum: terms of less than 2^-122 of their row's sum are dropped.
constexpr double kWeak = 1e-25, kLost = 0x1p-98;

}  // namespace uot
