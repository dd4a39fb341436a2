// AMX: the same floats as AVX-512 with BF16 and VNNI; products of whole tiles are in amx_tiles.h.
#pragma once

#include "avx512_bf16_floats.h"

#define TESSERAL_TILES
