// The address map of shared memory on Volta, and which lane holds what.
//
// Tests read this file: an entry is one line, an expression of C that is one of Python too.
//
// A tile has rows of CHUNKS pieces; a piece is 16 bytes, 8 numbers of one row, and fills 4 of the
// 32 banks. Lanes read whole pieces, eight lanes at a time. Rows lie CHUNKS * 16 bytes apart, a
// multiple of the 128 bytes of all banks: the exclusive or sends rows that are read together to
// different banks.
//
// mma.m8n8k4 is four products of 8 by 8 by 4, one for each quad pair: lanes 4 q to 4 q + 3 and 16
// above. Quad pairs 0 and 2 take rows 0 to 3 and 8 to 11 of 16, quad pairs 1 and 3 the others; 0
// and 1 take the even fours of 16 columns, 2 and 3 the odd ones. So one instruction makes 16 by
// 16, and each left and right operand that a lane has read serves a square.
#pragma once

// Place of a piece, in pieces.
#define PIECE(row, chunk) ((row) * CHUNKS + ((chunk) ^ ((row) & 7)))

// The row of 16 whose queries, four of a piece each time, are a lane's left operand.
#define QUERY_ROW(lane) (((lane) & 7) | (((lane) >> 4) << 3))

// The key of 16 whose numbers are a lane's right operand in the first product.
#define KEY_ROW(lane) (((lane) & 3) | (((lane) >> 1) & 12))

// The key and the chunk of four that are a lane's right operand in the second product: the first
// half of the piece for one square, the second for the next. A quad pair begins (other = 0) with
// the keys whose weights it has.
#define VALUE_ROW(lane, eight, other) (((lane) & 3) | (((((lane) >> 3) & 1) ^ (other)) << 2) | ((eight) << 3))
#define VALUE_CHUNK(lane, four) ((4 * (four)) ^ ((lane) >> 3))

// Number i of an accumulator in float32: its row of 16, its key of 16 in the first product, its
// column of 32 in the second, where `half` is the half of the piece.
#define SUM_ROW(lane, i) (((lane) & 5) | ((i) & 2) | (((lane) >> 4) << 3))
#define SCORE_KEY(lane, i) (((lane) & 2) | ((i) & 1) | (((lane) & 8) >> 1) | (((i) >> 2) << 3))
#define SUM_COLUMN(lane, half, i) ((((i) >> 2) << 4) | ((lane) & 8) | ((half) << 2) | ((lane) & 2) | ((i) & 1))

// The same of scores in float16: all of a lane's are of the row of its left operand.
#define HALF_SCORE_KEY(lane, i) (((i) & 3) | (((lane) & 8) >> 1) | (((i) >> 2) << 3))

// Lanes that hold the other rows, and the other keys, of the same square.
#define OTHER_ROWS 2
#define OTHER_KEYS 8
