// 2^x for x in [0, 1) as a polynomial: minimax for the relative error, which is 7.5e-8 before and
// 1.6e-7 after rounding to float32 (1.3 units in the last place).
#pragma once

namespace tesseral {

constexpr int exp2_degree = 5;
constexpr float exp2_coefficients[exp2_degree + 1] = {
    0.9999999250665456f,  0.6931530731468297f,   0.2401536172843632f,
    0.05582631767074963f, 0.008989340283631166f, 0.0018775766806286125f,
};

// The same to 2.7e-6.
constexpr int exp2_rough_degree = 4;
constexpr float exp2_rough_coefficients[exp2_rough_degree + 1] = {
    1.0000026226043701f,  0.69300377368927f,     0.24144303798675537f,
    0.05201094225049019f, 0.013534457422792912f,
};

}  // namespace tesseral
