// AVX-512 with BF16 and VNNI: the same bytes as AVX-512 alone.
#pragma once

#include "avx512.h"
