/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The little of the Linux kernel that stage.c and key.c of the guest driver use,
 * for a program of one thread. Locks are empty.
 */
#ifndef _KERNEL_H
#define _KERNEL_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define PAGE_SIZE		4096UL
#define BITS_PER_LONG		64
#define BIT(n)			(1UL << (n))
#define BIT_WORD(n)		((n) / BITS_PER_LONG)
#define BIT_MASK(n)		(1UL << ((n) % BITS_PER_LONG))
#define BITS_TO_LONGS(n)	(((n) + BITS_PER_LONG - 1) / BITS_PER_LONG)
#define IS_ENABLED(option)	0
#define READ_ONCE(x)		(x)
#define WRITE_ONCE(x, value)	((x) = (value))
#define GFP_KERNEL		0
#define __rcu
#define container_of(pointer, type, member) \
	((type *)((char *)(pointer) - offsetof(type, member)))

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

/* Only pointers to these are used, or members that nothing looks at. */
struct mutex { int unused; };
struct notifier_block { int unused; };
struct scatterlist { int unused; };
struct srcu_struct { int unused; };
struct virtio_device { int unused; };
struct virtqueue { int unused; };
struct work_struct { int unused; };
struct delayed_work { int unused; };
struct workqueue_struct { int unused; };
typedef struct { int unused; } spinlock_t;
typedef struct { int unused; } wait_queue_head_t;

/* Bits */
static inline bool test_bit(unsigned long n, const unsigned long *bits)
{
	return bits[BIT_WORD(n)] & BIT_MASK(n);
}

static inline void __set_bit(unsigned long n, unsigned long *bits)
{
	bits[BIT_WORD(n)] |= BIT_MASK(n);
}

static inline void __clear_bit(unsigned long n, unsigned long *bits)
{
	bits[BIT_WORD(n)] &= ~BIT_MASK(n);
}

static inline bool __test_and_set_bit(unsigned long n, unsigned long *bits)
{
	bool old = test_bit(n, bits);

	__set_bit(n, bits);
	return old;
}

static inline bool __test_and_clear_bit(unsigned long n, unsigned long *bits)
{
	bool old = test_bit(n, bits);

	__clear_bit(n, bits);
	return old;
}

#define set_bit		__set_bit
#define clear_bit	__clear_bit

/* Memory */
struct page {
	unsigned long value;
};

static inline void *kzalloc(size_t size, int flags)
{
	(void)flags;
	return calloc(1, size);
}

static inline void kfree(void *memory)
{
	free(memory);
}

static inline struct page *alloc_page(int flags)
{
	(void)flags;
	return calloc(1, sizeof(struct page));
}

static inline void __free_page(struct page *page)
{
	free(page);
}

static inline void put_page(struct page *page)
{
	free(page);
}

/* An array, as long as the areas of the test */
#define XARRAY_SLOTS	64

struct xarray {
	struct page *slot[XARRAY_SLOTS];
};

#define xa_lock(array)		((void)(array))
#define xa_unlock(array)	((void)(array))
#define xa_empty(array)		((void)(array), false)

static inline struct page *xa_load(struct xarray *array, unsigned long index)
{
	return array->slot[index];
}

static inline struct page *__xa_erase(struct xarray *array, unsigned long index)
{
	struct page *page = array->slot[index];

	array->slot[index] = NULL;
	return page;
}

/* Lists */
struct list_head {
	struct list_head *next, *prev;
};

static inline void INIT_LIST_HEAD(struct list_head *list)
{
	list->next = list;
	list->prev = list;
}

static inline bool list_empty(const struct list_head *list)
{
	return list->next == list;
}

static inline void list_add(struct list_head *entry, struct list_head *after)
{
	entry->next = after->next;
	entry->prev = after;
	after->next->prev = entry;
	after->next = entry;
}

static inline void list_add_tail(struct list_head *entry,
				 struct list_head *list)
{
	list_add(entry, list->prev);
}

static inline void list_del(struct list_head *entry)
{
	entry->prev->next = entry->next;
	entry->next->prev = entry->prev;
}

static inline void list_del_init(struct list_head *entry)
{
	list_del(entry);
	INIT_LIST_HEAD(entry);
}

static inline void list_move(struct list_head *entry, struct list_head *list)
{
	list_del(entry);
	list_add(entry, list);
}

static inline void list_move_tail(struct list_head *entry,
				  struct list_head *list)
{
	list_del(entry);
	list_add_tail(entry, list);
}

#define list_entry(pointer, type, member) container_of(pointer, type, member)
#define list_first_entry_or_null(list, type, member) \
	(list_empty(list) ? NULL : list_entry((list)->next, type, member))
#define list_for_each_entry_safe(at, following, list, member) \
	for (at = list_entry((list)->next, __typeof__(*at), member), \
	     following = list_entry(at->member.next, __typeof__(*at), member); \
	     &at->member != (list); \
	     at = following, \
	     following = list_entry(at->member.next, __typeof__(*at), member))

struct hlist_node {
	struct hlist_node *next, **pprev;
};

struct hlist_head {
	struct hlist_node *first;
};

#define INIT_HLIST_HEAD(list)	((list)->first = NULL)

static inline void INIT_HLIST_NODE(struct hlist_node *node)
{
	node->next = NULL;
	node->pprev = NULL;
}

static inline void hlist_add_head(struct hlist_node *node,
				  struct hlist_head *list)
{
	node->next = list->first;
	node->pprev = &list->first;
	if (node->next)
		node->next->pprev = &node->next;
	list->first = node;
}

static inline void hlist_del_init(struct hlist_node *node)
{
	if (!node->pprev)
		return;
	*node->pprev = node->next;
	if (node->next)
		node->next->pprev = node->pprev;
	INIT_HLIST_NODE(node);
}

#define hlist_entry_or_null(node, type, member) \
	((node) ? container_of(node, type, member) : NULL)
#define hlist_for_each_entry(at, list, member) \
	for (at = hlist_entry_or_null((list)->first, __typeof__(*at), member); \
	     at; \
	     at = hlist_entry_or_null(at->member.next, __typeof__(*at), member))

#endif
