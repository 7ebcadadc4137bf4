/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * heap: the heap of a program, the same in every run, as pages for a benchmark.
 *
 * It is laid out as the heap of CPython 3.11 is once it has parsed a file of
 * JSON records: pools of one page for objects of one size, up to 512 bytes;
 * counts of references, addresses of types, lengths and hashes in every object;
 * strings of text, numbers, and dictionaries and lists full of addresses; one
 * object in nine was freed since, and links to the next one. The addresses are
 * those of the process that this would be the heap of.
 *
 * LZ4 (lz4_flex, each page alone) leaves 0.42 of it. Of the heap of a real
 * CPython 3.11 with such records it leaves 0.41, of that of a C compiler 0.28, of
 * an ELF file 0.65. `cargo xtask bench guest` prints it (`heap_compressed`).
 */
#ifndef HEAP_H
#define HEAP_H

#include <stdint.h>
#include <string.h>

#define PAGE 4096UL
#define HEAP_PAGES 1024UL
#define HEAP_BYTES (HEAP_PAGES * PAGE)

#define HEAP_BASE 0x7f3a5c400000ULL
#define HEAP_CLASS 16UL
#define HEAP_CLASSES 33
#define HEAP_POOL_HEADER 48UL
#define HEAP_WORDS 2048

/* Addresses of types and of what is not on the heap */
#define TYPE_STR 0x955d20ULL
#define TYPE_INT 0x957b40ULL
#define TYPE_FLOAT 0x956480ULL
#define TYPE_LIST 0x958020ULL
#define TYPE_DICT 0x958fa0ULL
#define SMALL_INTS 0xa3bdc8ULL
#define ARENA 0x1c3f2a0ULL

static unsigned char heap[HEAP_BYTES] __attribute__((aligned(4096)));

static struct {
	size_t pages;			/* taken so far */
	size_t pool[HEAP_CLASSES];	/* page of the pool in use, plus one */
	size_t used[HEAP_CLASSES];	/* bytes of it in use */
	uint64_t freed[HEAP_CLASSES];	/* the object freed last */
	uint64_t tracked;		/* the container made last */
	uint64_t random;
	unsigned char word[HEAP_WORDS][12];
	unsigned char full;
} heap_state;

static uint64_t heap_random(void)
{
	uint64_t *state = &heap_state.random;

	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state * 0x2545f4914f6cdd1dULL;
}

static uint64_t heap_below(uint64_t bound)
{
	return (heap_random() >> 33) % bound;
}

static void heap_put(uint64_t object, size_t offset, uint64_t value)
{
	if (!heap_state.full)
		memcpy(heap + (object - HEAP_BASE) + offset, &value, sizeof(value));
}

static void heap_put_byte(uint64_t object, size_t offset, unsigned char value)
{
	if (!heap_state.full)
		heap[object - HEAP_BASE + offset] = value;
}

/* Returns the address of so many bytes, at most 512. */
static uint64_t heap_take(size_t bytes)
{
	size_t class = (bytes + HEAP_CLASS - 1) / HEAP_CLASS;
	size_t size = class * HEAP_CLASS;
	uint64_t pool;

	if (!heap_state.pool[class] || heap_state.used[class] + size > PAGE) {
		if (heap_state.pages == HEAP_PAGES) {
			heap_state.full = 1;
			return HEAP_BASE;
		}
		pool = HEAP_BASE + heap_state.pages * PAGE;
		heap_put(pool, 0, (PAGE - HEAP_POOL_HEADER) / size);
		heap_put(pool, 16, ARENA + class * 16);
		heap_put(pool, 24, ARENA + class * 16);
		heap_put(pool, 32, heap_state.pages / 64 | class << 32);
		heap_put(pool, 40, PAGE | (PAGE - size) << 32);
		heap_state.pool[class] = ++heap_state.pages;
		heap_state.used[class] = HEAP_POOL_HEADER;
	}
	pool = HEAP_BASE + (heap_state.pool[class] - 1) * PAGE;
	pool += heap_state.used[class];
	heap_state.used[class] += size;
	return pool;
}

/* What was there stays, but for the first word. */
static void heap_free(uint64_t object, size_t bytes)
{
	size_t class = (bytes + HEAP_CLASS - 1) / HEAP_CLASS;

	heap_put(object, 0, heap_state.freed[class]);
	heap_state.freed[class] = object;
}

static void heap_object(uint64_t object, uint64_t type)
{
	heap_put(object, 0, 1);
	heap_put(object, 8, type);
}

/* An object with the links of the garbage collector before it. */
static uint64_t heap_container(size_t bytes, uint64_t type)
{
	uint64_t head = heap_take(bytes + 16);

	heap_put(head, 0, heap_state.tracked + 96);
	heap_put(head, 8, heap_state.tracked);
	heap_state.tracked = head;
	heap_object(head + 16, type);
	return head + 16;
}

/* So many words of text, in an object of at most 512 bytes. */
static uint64_t heap_string(size_t words)
{
	unsigned char text[464];
	size_t length = 0, i;
	uint64_t object;

	while (words--) {
		const unsigned char *word = heap_state.word[heap_below(HEAP_WORDS)];

		for (i = 0; word[i] && length < sizeof(text) - 1; i++)
			text[length++] = word[i];
		if (words && length < sizeof(text) - 1)
			text[length++] = ' ';
	}
	object = heap_take(48 + length + 1);
	heap_object(object, TYPE_STR);
	heap_put(object, 16, length);
	heap_put(object, 24, heap_random());
	heap_put(object, 32, 0xe4);
	for (i = 0; i < length; i++)
		heap_put_byte(object, 48 + i, text[i]);
	if (!heap_below(9))
		heap_free(object, 48 + length + 1);
	return object;
}

static uint64_t heap_int(uint64_t value)
{
	uint64_t object;

	if (value < 257)
		return SMALL_INTS + value * 32;
	object = heap_take(32);
	heap_object(object, TYPE_INT);
	heap_put(object, 16, 1);
	heap_put(object, 24, value);
	return object;
}

static uint64_t heap_float(void)
{
	uint64_t object = heap_take(24);

	heap_object(object, TYPE_FLOAT);
	heap_put(object, 16, 0x3fe0000000000000ULL | heap_random() >> 12);
	return object;
}

static uint64_t heap_list(const uint64_t *items, size_t count)
{
	uint64_t array = heap_take((count + 3) * 8);
	uint64_t object = heap_container(40, TYPE_LIST);
	size_t i;

	heap_put(object, 16, count);
	heap_put(object, 24, array);
	heap_put(object, 32, count + 3);
	for (i = 0; i < count; i++)
		heap_put(array, i * 8, items[i]);
	return object;
}

static uint64_t heap_dict(const uint64_t *keys, const uint64_t *values, size_t count)
{
	size_t slots = count > 5 ? 16 : 8, i;
	uint64_t table = heap_take(32 + slots + slots * 2 / 3 * 16);
	uint64_t object = heap_container(48, TYPE_DICT);

	heap_put(table, 0, 1);
	heap_put(table, 8, (slots > 8 ? 0x010404 : 0x010303));
	heap_put(table, 16, slots * 2 / 3 - count);
	heap_put(table, 24, count);
	for (i = 0; i < slots; i++)
		heap_put_byte(table, 32 + i, 0xff);
	for (i = 0; i < count; i++) {
		/* The hash of a key is the same in every dictionary */
		heap_put_byte(table, 32 + (keys[i] / 16 * 7 + i) % slots, i);
		heap_put(table, 32 + slots + i * 16, keys[i]);
		heap_put(table, 40 + slots + i * 16, values[i]);
	}
	heap_put(object, 16, count);
	heap_put(object, 24, heap_random() >> 40);
	heap_put(object, 32, table);
	return object;
}

/* Words of two to four syllables. */
static void heap_words(void)
{
	static const char consonants[] = "tnrshldcmfpgwybv", vowels[] = "eaoieaiu";
	size_t i, at, length;

	for (i = 0; i < HEAP_WORDS; i++) {
		length = 3 + heap_below(8);
		for (at = 0; at < length; at++)
			heap_state.word[i][at] = at % 2 ? vowels[heap_below(8)] :
				consonants[heap_below(8) + (heap_below(3) ? 0 : 8)];
	}
}

/* Fills the heap. */
static void heap_build(void)
{
	uint64_t key[8], value[8], part[5], number;
	size_t i;

	heap_state.random = 88172645463325252ULL;
	heap_state.tracked = HEAP_BASE;
	heap_words();
	for (i = 0; i < 8; i++)
		key[i] = heap_string(1);
	for (number = 1000; !heap_state.full; number++) {
		part[0] = heap_string(1);
		part[1] = heap_int(heap_below(1000));
		value[0] = heap_int(number);
		value[1] = heap_string(3);
		value[4] = heap_dict(key + 6, part, 2);
		for (i = 0; i < 5; i++)
			part[i] = heap_string(1);
		value[2] = heap_list(part, 5);
		value[3] = heap_float();
		value[5] = heap_string(20);
		heap_dict(key, value, 6);
	}
}

/*
 * Makes a page of its number and of a mark, so that no two are the same, and one
 * that was written earlier is not taken for this one.
 */
static void heap_page(unsigned char *page, uint64_t index, uint64_t mark)
{
	uint64_t stamp = index ^ mark << 32;

	memcpy(page, heap + index % HEAP_PAGES * PAGE, PAGE);
	memcpy(page, &stamp, sizeof(stamp));
}

#endif
