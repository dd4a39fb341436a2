// AMX: the same bytes as AVX-512 with BF16 and VNNI.
#pragma once

#include "avx512_bf16.h"
