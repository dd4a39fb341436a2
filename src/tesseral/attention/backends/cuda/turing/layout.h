// The address map of shared memory on Turing, and which lane holds what.
//
// Tests read this file: an entry is one line, an expression of C that is one of Python too.
//
// A tile has rows of CHUNKS pieces; a piece is 16 bytes, 8 numbers of one row, and fills 4 of the
// 32 banks. Eight rows lie CHUNKS * 16 bytes apart, a multiple of the 128 bytes of all banks, so
// that without the exclusive or they would meet in the same banks.
#pragma once

// Place of a piece, in pieces.
#define PIECE(row, chunk) ((row) * CHUNKS + ((chunk) ^ ((row) & 7)))

// The piece whose address a lane gives to ldmatrix.x4: lanes 8 i to 8 i + 7 name the rows of
// matrix i. Queries: 16 rows of two chunks. Keys: 16 keys of two chunks. Values: 8 keys of four
// chunks, transposed on the way.
#define QUERY_ROW(lane) ((lane) & 15)
#define QUERY_CHUNK(lane, step) ((2 * (step)) ^ ((lane) >> 4))
#define KEY_ROW(lane, pair) (16 * (pair) + ((((lane) >> 4) << 3) | ((lane) & 7)))
#define KEY_CHUNK(lane, step) ((2 * (step)) ^ (((lane) >> 3) & 1))
#define VALUE_ROW(lane, eight) (8 * (eight) + ((lane) & 7))
#define VALUE_CHUNK(lane, four) ((4 * (four)) ^ ((lane) >> 3))

// mma.m16n8k8: number i of an accumulator is row SUM_ROW, column SUM_COLUMN of 16 by 8. Two
// neighbours in a row, as float16, are a register of the left operand of the next product.
#define SUM_ROW(lane, i) (((lane) >> 2) + 8 * ((i) >> 1))
#define SUM_COLUMN(lane, i) (2 * ((lane) & 3) + ((i) & 1))
