/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Virtio transcendent memory driver: declarations that its files share.
 *
 * README.md has the structures, the lock order and the contexts.
 */
#ifndef _TMEM_H
#define _TMEM_H

#include <linux/bits.h>
#include <linux/list.h>
#include <linux/mm_types.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <linux/spinlock.h>
#include <linux/srcu.h>
#include <linux/virtio.h>
#include <linux/virtio_tmem.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

/*
 * Pages of one object go to the queues in blocks of this many. A CPU takes up to
 * 64 slots of a rotational swap device at a time, SWAP_BATCH, and the next CPU
 * takes those behind: so each is likely to have a queue of its own. A multiple
 * of BITS_PER_LONG: queues then share no word of a bitmap.
 */
#define TMEM_BLOCK_SHIFT	6
#define TMEM_BLOCK_PAGES	BIT(TMEM_BLOCK_SHIFT)

/* With that many invalidates to send, a batch rides with the next store */
#define TMEM_RIDE_STORE		16

/* How long the host does not know what was stored or given up, in ms */
#define TMEM_FLUSH_MS		20
/* After that time pages that were refused are sent once more, in ms */
#define TMEM_STUCK_MS		1000

/* How operations on pages are handled */
enum tmem_state {
	TMEM_RUN,	/* they go to the host */
	TMEM_PAUSED,	/* they wait: the guest goes to sleep, or wakes up */
	TMEM_DEAD,	/* it fails: the device was given up */
};

/* The user of an area */
enum tmem_user {
	TMEM_USER_FRONTSWAP,
	TMEM_USER_BLOCK,
	TMEM_NR_USERS,
};

/* Counters of one user, by the answers of the host */
enum tmem_op_stat {
	TMEM_STORES_OK,
	TMEM_STORES_STAGED,
	TMEM_STORES_ZERO,
	TMEM_STORES_NO_SPACE,
	TMEM_STORES_FROZEN,
	TMEM_STORES_NO_MEMORY,
	TMEM_STORES_REFUSED_OTHER,
	TMEM_STORES_WITHHELD,
	TMEM_STORES_FAILED,
	TMEM_STAGED_DROPPED,
	TMEM_STAGED_BATCHES,
	TMEM_LOADS_OK,
	TMEM_LOADS_ABSENT,
	TMEM_LOADS_LOST,
	TMEM_LOADS_IO_ERROR,
	TMEM_LOADS_FAILED,
	TMEM_LOADS_SAVED,
	TMEM_LOADS_STAGED,
	TMEM_LOADS_ZERO,
	TMEM_INVALIDATES,
	TMEM_INVALIDATES_SENT,
	TMEM_INVALIDATES_OVERTAKEN,
	TMEM_INVALIDATES_FAILED,
	TMEM_INVALIDATE_BATCHES,
	TMEM_INVALIDATE_BATCHES_RODE,
	TMEM_OBJECT_INVALIDATES,
	TMEM_NR_OP_STATS,
};

/* Counters of the queues */
enum tmem_queue_stat {
	TMEM_KICKS_PAGE,
	TMEM_KICKS_STAGED,
	TMEM_KICKS_INVALIDATE,
	TMEM_KICKS_CONTROL,
	TMEM_KICKS_AGAIN,
	TMEM_SLOT_WAITS,
	TMEM_POLL_TIMEOUTS,
	TMEM_INTERRUPTS,
	TMEM_REQUEST_TIMEOUTS,
	TMEM_BAD_ANSWERS,
	TMEM_BROKEN,
	TMEM_REVIVED,
	TMEM_EVENTS,
	TMEM_NR_QUEUE_STATS,
};

enum tmem_slot_kind {
	TMEM_SLOT_BATCH,	/* up to VIRTIO_TMEM_MAX_BATCH keys, no page */
	TMEM_SLOT_PAGE,		/* one page in or out */
	TMEM_SLOT_PAGES,	/* up to VIRTIO_TMEM_MAX_BATCH pages */
	TMEM_NR_SLOT_KINDS,
};

/* Buffers of the host; allocated once, never on a stack */
struct tmem_out {
	struct virtio_tmem_req req;
	struct virtio_tmem_entry entry[];
};

struct tmem_in {
	struct virtio_tmem_resp resp;
	u8 status[];
};

struct tmem_queue;
struct tmem_area;

/* Lists of keys by which staging pages are found, in each queue */
#define TMEM_STAGE_BUCKETS	64

enum tmem_staged_state {
	TMEM_STAGED_FREE,
	TMEM_STAGED_FILLING,	/* its owner copies a page */
	TMEM_STAGED_QUEUED,	/* the host has not seen it */
	TMEM_STAGED_SENT,	/* in the ring */
	TMEM_STAGED_STUCK,	/* the host refused it */
};

enum tmem_dropped {
	TMEM_DROPPED_NONE,
	TMEM_DROPPED_HERE,	/* the host has not got it */
	TMEM_DROPPED_SENT,	/* the host may have it */
};

/* Where a page is; key.c */
enum tmem_place {
	TMEM_AT_STAGE,
	TMEM_AT_ZERO,
	TMEM_AT_SAVED,
	TMEM_AT_LOST,
	TMEM_AT_HOST,
	TMEM_AT_NOWHERE,
};

/**
 * struct tmem_staged - a staging page
 * @list: in the list of its state
 * @bucket: in tmem_stage.buckets, if it is the page of its key
 * @page: the data
 * @area: area of its key; NULL when it is free, and when it is at the host and
 *	its key was given up or has newer data
 * @index: index of its key
 * @state: what becomes of it
 */
struct tmem_staged {
	struct list_head list;
	struct hlist_node bucket;
	struct page *page;
	struct tmem_area *area;
	unsigned long index;
	enum tmem_staged_state state;
};

/**
 * struct tmem_stage - the staging pages of a queue
 * @nr: all of them
 * @nr_free: those in @free
 * @nr_queued: those in @queued
 * @nr_sent: those in @sent
 * @nr_stuck: those in @stuck
 * @free: not in use
 * @queued: to be sent, the oldest first
 * @sent: in the ring
 * @stuck: refused by the host; while there are any, no store is staged
 * @buckets: by key
 */
struct tmem_stage {
	unsigned int nr;
	unsigned int nr_free;
	unsigned int nr_queued;
	unsigned int nr_sent;
	unsigned int nr_stuck;
	struct list_head free;
	struct list_head queued;
	struct list_head sent;
	struct list_head stuck;
	struct hlist_head buckets[TMEM_STAGE_BUCKETS];
};

/**
 * struct tmem_slot - one request
 * @list: in tmem_queue.free[kind] while the slot is not used
 * @kind: size of the buffers
 * @done: the answer is in @in; written under the lock of the queue, read
 *	without
 * @async: no task waits: the task that finds the answer frees the slot
 * @len: length in the used ring
 * @count: entries in the request
 * @nr_pages: length of @page; 0, or @count
 * @page: pages to store or load
 * @staged: the staging pages which these are, or NULL
 * @sg: table for @page
 * @area: area whose bitmaps the answer concerns, or NULL
 * @complete: applies the answer to the bitmaps of @area; under the lock of the
 *	queue
 * @out: read by the host
 * @in: written by the host
 */
struct tmem_slot {
	struct list_head list;
	enum tmem_slot_kind kind;
	bool done;
	bool async;
	u32 len;
	unsigned int count;
	unsigned int nr_pages;
	struct page **page;
	struct tmem_staged **staged;
	struct scatterlist *sg;
	struct tmem_area *area;
	void (*complete)(struct tmem_queue *q, struct tmem_slot *slot);
	struct tmem_out *out;
	struct tmem_in *in;
};

/**
 * struct tmem_queue - a request queue
 * @dev: device
 * @index: in tmem_dev.queues
 * @vq_index: its number at the device
 * @loads: the queue for loads of the pages that belong to this one
 * @lock: protects the ring, the slots and, for a queue that pages belong to,
 *	the staging pages and the state of these pages in all areas
 * @vq: virtqueue
 * @closed: no request enters the ring, and it is not polled for answers: there
 *	is no ring at the device
 * @added: requests put into the ring
 * @reaped: answers taken from the ring
 * @pages_kind: kind of a request with many pages
 * @sleepers: tasks in @wait; interrupts are on while there are any
 * @wait: for an answer or for a slot
 * @free: unused slots, by kind
 * @nr_slots: length of @slots
 * @slots: all slots
 * @stage: staging pages
 * @remote: the host had not answered when the write to the doorbell returned
 * @waited: staging pages were in the ring at the last look for late answers
 * @flushed_at: @reaped then
 * @send_work: sends full batches of staging pages
 */
struct tmem_queue {
	struct tmem_dev *dev;
	unsigned int index;
	unsigned int vq_index;
	struct tmem_queue *loads;
	spinlock_t lock;	/* ring, slots, bits of areas */
	struct virtqueue *vq;
	bool closed;
	unsigned long added;
	unsigned long reaped;
	enum tmem_slot_kind pages_kind;
	unsigned int sleepers;
	wait_queue_head_t wait;
	struct list_head free[TMEM_NR_SLOT_KINDS];
	unsigned int nr_slots;
	struct tmem_slot **slots;
	struct tmem_stage stage;
	bool remote;
	bool waited;
	unsigned long flushed_at;
	struct work_struct send_work;
};

#define TMEM_NR_EVENTS	4

/* Staging pages in a request, if the device does not say */
#define TMEM_STORE_BATCH	8

/* What the device said of itself */
struct tmem_config {
	u32 page_size;
	u16 nr_queues;
	u16 max_batch;
	u16 nr_store_queues;
	u16 store_batch;
};

/**
 * struct tmem_dev - a device
 * @vdev: virtio device
 * @event_vq: event queue
 * @events: buffers of the event queue
 * @event_work: reads them
 * @config_work: reads the configuration after a change
 * @config: its configuration
 * @nr_queues: queues that pages belong to
 * @nr_rings: length of @queues
 * @queues: request queues; first those that pages belong to, then those for
 *	loads alone, if the device has such
 * @max_batch: most entries in a request
 * @store_batch: staging pages in a request
 * @life_lock: held while the device is set up or taken down: probe, sleep,
 *	reviving, remove
 * @lock: protects @areas, and keeps them for the task that sends their
 *	invalidates; held while the host is waited for
 * @list_lock: held with @lock to change @areas, and alone to walk over them
 * @areas: areas on this device
 * @pool: ids of the pools, by user
 * @has_user: whether the user is there, and needs its pool
 * @break_lock: protects @state, @open and @leaving; all tasks that saw the
 *	device fail wait until the host does not use their pages any more
 * @state: how operations on pages are handled
 * @open: the rings are at the device
 * @leaving: the driver is removed, or asleep: the device is not revived
 * @has_vqs: there are virtqueues; under @life_lock
 * @revive_work: tries to revive the device
 * @revive_delay: how long until the next try, in jiffies
 * @wq: for all work here but
 * @send_wq: for tmem_queue.send_work, on any CPU
 * @flush_work: sends invalidates that were not sent with another request
 * @full: the host refused a store: do not ask again before @full_until
 * @full_until: in jiffies
 * @stuck_until: when staging pages that were refused are sent again
 * @hibernating: no stores: the host keeps nothing while the guest is off
 * @pm: notified of hibernation
 * @disk: swap disk, or NULL
 * @host_pressure: last value from the host, VIRTIO_TMEM_PRESSURE_
 * @host_limit: last value from the host, in bytes
 * @host_used: last value from the host, in bytes
 */
struct tmem_dev {
	struct virtio_device *vdev;
	struct virtqueue *event_vq;
	struct virtio_tmem_event *events;
	struct work_struct event_work;
	struct work_struct config_work;

	struct tmem_config config;
	unsigned int nr_queues;
	unsigned int nr_rings;
	struct tmem_queue *queues;
	unsigned int max_batch;
	unsigned int store_batch;

	struct mutex life_lock;		/* set-up and tear-down */
	struct mutex lock;		/* areas */
	spinlock_t list_lock;		/* areas, for those who only read */
	struct list_head areas;
	u32 pool[TMEM_NR_USERS];
	bool has_user[TMEM_NR_USERS];

	struct mutex break_lock;	/* state, open, leaving */
	enum tmem_state state;
	bool open;
	bool leaving;
	bool has_vqs;
	struct delayed_work revive_work;
	unsigned long revive_delay;

	struct workqueue_struct *wq;
	struct workqueue_struct *send_wq;
	struct delayed_work flush_work;

	bool full;
	unsigned long full_until;
	unsigned long stuck_until;
	bool hibernating;
	struct notifier_block pm;

	struct tmem_disk *disk;

	u32 host_pressure;
	u64 host_limit;
	u64 host_used;
};

/**
 * struct tmem_pending - the part of an area that belongs to one queue
 * @count: bits in tmem_area.pending
 * @pages: bits in tmem_area.present
 * @hint: where the next search starts
 * @blocks: blocks of the queue which may have bits in tmem_area.pending
 */
struct tmem_pending {
	unsigned long count;
	unsigned long pages;
	unsigned long hint;
	unsigned long *blocks;
};

/**
 * struct tmem_area - the pages of one object: a swap area or the disk
 * @dev: NULL after the device was removed
 * @list: in tmem_dev.areas
 * @user: whose pool it is in
 * @object: its name there
 * @nr_pages: size
 * @nr_queues: length of @queue
 * @present: pages which the host has accepted and still has to keep
 * @pending: pages which were given up, and the host does not know yet
 * @zero: pages whose bytes are all zero; nobody keeps those
 * @lost: pages that were present when the device was given up, and that their
 *	owner did not give up; NULL as long as there was no such page
 * @saved: pages that were loaded before the guest slept, and are not at the
 *	host again
 * @queue: the parts that belong to one queue, under its lock
 * @kept_lock: protects @kept and @zero after the device was removed
 * @kept: staging pages of a device that was removed
 *
 * A page is never present and pending. The lock of its queue protects the bits
 * of a page, its staging page and its saved copy. key.c has the states.
 */
struct tmem_area {
	struct tmem_dev __rcu *dev;
	struct list_head list;
	enum tmem_user user;
	u64 object[3];
	unsigned long nr_pages;
	unsigned int nr_queues;
	unsigned long *present;
	unsigned long *pending;
	unsigned long *zero;
	unsigned long *lost;
	struct xarray saved;
	struct tmem_pending *queue;
	spinlock_t kept_lock;	/* kept, zero; after the device was removed */
	struct list_head kept;
};

/**
 * struct tmem_transfer - a request that moves pages of one area
 * @area: area
 * @dev: its device
 * @op: VIRTIO_TMEM_OP_STORE or VIRTIO_TMEM_OP_LOAD
 * @many: it may have more than one page
 * @saved: its pages are stored again, from tmem_area.saved
 * @ring: the queue which it goes to
 * @slot: the request, or NULL as long as it has no page
 */
struct tmem_transfer {
	struct tmem_area *area;
	struct tmem_dev *dev;
	u16 op;
	bool many;
	bool saved;
	struct tmem_queue *ring;
	struct tmem_slot *slot;
};

/**
 * struct tmem_io - stores or loads of some pages of one area
 * @transfer: pages that have no answer yet
 * @srcu: of tmem_srcu
 * @fill: a page that is not there is loaded as zeroes
 * @done: called for each page that was to be loaded, or NULL
 * @err: of one of the pages that failed
 */
struct tmem_io {
	struct tmem_transfer transfer;
	int srcu;
	bool fill;
	void (*done)(struct tmem_io *io, unsigned long index,
		     struct page *page, int err);
	int err;
};

/*
 * Files from the lowest to the highest: each calls those above it in this list.
 */

/* stats.c */
void tmem_count_op(enum tmem_user user, enum tmem_op_stat stat,
		   unsigned int n);
void tmem_count(enum tmem_queue_stat stat);
u64 tmem_op_count(enum tmem_user user, enum tmem_op_stat stat);
u64 tmem_queue_count(enum tmem_queue_stat stat);

/* stage.c */
int tmem_stage_init(struct tmem_stage *stage, unsigned int nr);
void tmem_stage_free(struct tmem_stage *stage);
void tmem_staged_free(struct tmem_staged *staged);
struct tmem_staged *tmem_stage_take(struct tmem_stage *stage);
void tmem_stage_untake(struct tmem_stage *stage, struct tmem_staged *staged);
void tmem_stage_put(struct tmem_stage *stage, struct tmem_staged *staged,
		    struct tmem_area *area, unsigned long index);
struct tmem_staged *tmem_stage_find(struct tmem_stage *stage,
				    struct tmem_area *area,
				    unsigned long index);
enum tmem_dropped tmem_stage_drop(struct tmem_stage *stage,
				  struct tmem_area *area, unsigned long index);
struct tmem_staged *tmem_stage_oldest(struct tmem_stage *stage);
void tmem_stage_send(struct tmem_stage *stage, struct tmem_staged *staged);
bool tmem_stage_answer(struct tmem_stage *stage, struct tmem_staged *staged,
		       bool kept);
void tmem_stage_unstick(struct tmem_stage *stage, unsigned int max);
void tmem_stage_recall(struct tmem_stage *stage);
void tmem_stage_detach(struct tmem_stage *stage, struct tmem_area *area,
		       struct list_head *to);
void tmem_stage_drop_area(struct tmem_stage *stage, struct tmem_area *area);

/* key.c */
void tmem_set_present(struct tmem_area *area, struct tmem_queue *q,
		      unsigned long index);
bool tmem_clear_present(struct tmem_area *area, struct tmem_queue *q,
			unsigned long index);
bool tmem_clear_saved(struct tmem_area *area, unsigned long index);
void tmem_give_up(struct tmem_area *area, struct tmem_queue *q,
		  unsigned long index);
void tmem_put_zero(struct tmem_area *area, struct tmem_queue *q,
		   unsigned long index);
void tmem_put_staged(struct tmem_area *area, struct tmem_queue *q,
		     unsigned long index, struct tmem_staged *staged);
int tmem_begin_store(struct tmem_area *area, struct tmem_queue *q,
		     unsigned long index, struct page *saved);
void tmem_end_store(struct tmem_area *area, struct tmem_queue *q,
		    unsigned long index, bool kept);
void tmem_begin_staged(struct tmem_queue *q, struct tmem_staged *staged);
void tmem_end_staged(struct tmem_area *area, struct tmem_queue *q,
		     struct tmem_staged *staged, bool kept);
enum tmem_place tmem_find(struct tmem_area *area, struct tmem_queue *q,
			  unsigned long index, struct page **copy);

/* queue.c */
typedef bool (*tmem_cond_t)(struct tmem_queue *q, void *data);
int tmem_queue_init(struct tmem_queue *q, struct tmem_dev *dev,
		    unsigned int index);
int tmem_queue_start(struct tmem_queue *q, struct virtqueue *vq);
void tmem_queue_close(struct tmem_queue *q);
void tmem_queue_free(struct tmem_queue *q);
void tmem_queue_callback(struct virtqueue *vq);
struct tmem_slot *tmem_slot_get(struct tmem_queue *q, enum tmem_slot_kind kind);
struct tmem_slot *tmem_slot_tryget(struct tmem_queue *q,
				   enum tmem_slot_kind kind);
void tmem_slot_release(struct tmem_queue *q, struct tmem_slot *slot);
void tmem_slot_put(struct tmem_queue *q, struct tmem_slot *slot);
int tmem_queue_add(struct tmem_queue *q, struct tmem_slot *slot);
void tmem_queue_reap(struct tmem_queue *q);
void tmem_kick(struct tmem_queue *q, enum tmem_queue_stat why);
bool tmem_slot_is_done(struct tmem_queue *q, void *slot);
int tmem_queue_wait(struct tmem_queue *q, tmem_cond_t done, void *data,
		    bool kick, enum tmem_queue_stat why);
u8 tmem_slot_status(struct tmem_slot *slot, unsigned int i);

/* state.c */
extern struct srcu_struct tmem_srcu;
void tmem_break(struct tmem_dev *dev, const char *why);
int tmem_wait(struct tmem_queue *q, tmem_cond_t done, void *data, bool kick,
	      enum tmem_queue_stat why);
int tmem_wait_slot(struct tmem_queue *q, struct tmem_slot *slot, bool kick,
		   enum tmem_queue_stat why);
void tmem_drain(struct tmem_queue *q);
void tmem_quiesce(struct tmem_dev *dev);
bool tmem_run(struct tmem_dev *dev);
bool tmem_pause(struct tmem_dev *dev);
void tmem_leave(struct tmem_dev *dev, bool leaving);
void tmem_lose(struct tmem_dev *dev);
void tmem_retry(struct tmem_dev *dev);
void tmem_wait_while_paused(struct tmem_area *area);

/* control.c */
int tmem_control(struct tmem_dev *dev, u16 op, u32 pool, const u64 *object,
		 u32 *new_pool);
int tmem_create_pool(struct tmem_dev *dev, enum tmem_user user);
void tmem_destroy_pool(struct tmem_dev *dev, enum tmem_user user);
int tmem_create_pools(struct tmem_dev *dev);

/* area.c */
struct tmem_area *tmem_area_create(struct tmem_dev *dev, enum tmem_user user,
				   u64 object, unsigned long nr_pages);
void tmem_area_destroy(struct tmem_area *area);
unsigned long tmem_area_pages(struct tmem_area *area);
unsigned long tmem_area_pending(struct tmem_area *area);
struct tmem_queue *tmem_area_queue(struct tmem_area *area, struct tmem_dev *dev,
				   unsigned long index);
void tmem_forget_kept(struct tmem_area *area, unsigned long index);
int tmem_load_kept(struct tmem_area *area, unsigned long index,
		   struct page *page);
void tmem_areas_detach(struct tmem_dev *dev);
int tmem_area_may_lose(struct tmem_area *area);
int tmem_areas_lose(struct tmem_dev *dev);
unsigned long tmem_dev_pages(struct tmem_dev *dev);

/* request.c */
void tmem_fill_req(struct tmem_slot *slot, struct tmem_area *area,
		   struct tmem_dev *dev, u16 op);
void tmem_add_entry(struct tmem_slot *slot, unsigned long index);
void tmem_set_full(struct tmem_dev *dev);
void tmem_has_room(struct tmem_dev *dev);
int tmem_store_result(struct tmem_area *area, u8 status);

/* invalidate.c */
void tmem_flush_later(struct tmem_dev *dev, unsigned int ms);
void tmem_invalidate(struct tmem_area *area, unsigned long index);
void tmem_ride(struct tmem_area *area, struct tmem_queue *q, unsigned int min);
bool tmem_flush_for_room(struct tmem_area *area, struct tmem_dev *dev);
void tmem_flush_area(struct tmem_area *area, struct tmem_dev *dev);

/* send.c */
bool tmem_is_withheld(struct tmem_dev *dev);
bool tmem_stage_page(struct tmem_area *area, struct tmem_queue *q,
		     unsigned long index, struct page *page);
void tmem_send_work(struct work_struct *work);
void tmem_flush_work(struct work_struct *work);

/* transfer.c */
bool tmem_transfer_has_room(struct tmem_transfer *t, unsigned long index);
int tmem_transfer_add(struct tmem_transfer *t, unsigned long index,
		      struct page *page);
int tmem_transfer_submit(struct tmem_transfer *t);
u8 tmem_transfer_status(struct tmem_transfer *t, unsigned int i);
void tmem_transfer_end(struct tmem_transfer *t);
int tmem_transfer_page(struct tmem_transfer *t, unsigned long index,
		       struct page *page, u8 *status);

/* page.c */
void tmem_io_begin(struct tmem_io *io, struct tmem_area *area, u16 op,
		   bool many);
void tmem_io_store(struct tmem_io *io, unsigned long index, struct page *page);
void tmem_io_load(struct tmem_io *io, unsigned long index, struct page *page);
int tmem_io_end(struct tmem_io *io);
int tmem_store(struct tmem_area *area, unsigned long index, struct page *page);
int tmem_load(struct tmem_area *area, unsigned long index, struct page *page);

/* frontswap.c */
#if IS_ENABLED(CONFIG_TMEM_FRONTSWAP)
int tmem_frontswap_attach(struct tmem_dev *dev);
void tmem_frontswap_detach(struct tmem_dev *dev);
#else
static inline int tmem_frontswap_attach(struct tmem_dev *dev)
{
	return -EOPNOTSUPP;
}

static inline void tmem_frontswap_detach(struct tmem_dev *dev)
{
}
#endif

/* block.c */
int tmem_block_attach(struct tmem_dev *dev, u64 bytes);
void tmem_block_detach(struct tmem_dev *dev);

/* users.c */
void tmem_start_users(struct tmem_dev *dev);

/* device.c */
void tmem_event_work(struct work_struct *work);
void tmem_config_work(struct work_struct *work);
int tmem_open(struct tmem_dev *dev);
void tmem_close(struct tmem_dev *dev);
void tmem_read_config(struct virtio_device *vdev, struct tmem_config *config);

/* life.c */
void tmem_shut(struct tmem_dev *dev);
void tmem_revive_work(struct work_struct *work);

/* sleep.c */
#ifdef CONFIG_PM_SLEEP
void tmem_sleep_attach(struct tmem_dev *dev);
void tmem_sleep_detach(struct tmem_dev *dev);
int tmem_freeze(struct virtio_device *vdev);
int tmem_restore(struct virtio_device *vdev);
#else
static inline void tmem_sleep_attach(struct tmem_dev *dev)
{
}

static inline void tmem_sleep_detach(struct tmem_dev *dev)
{
}
#endif

/* debugfs.c */
void tmem_debugfs_attach(struct tmem_dev *dev);
void tmem_debugfs_detach(struct tmem_dev *dev);
void tmem_debugfs_init(void);
void tmem_debugfs_exit(void);

#endif /* _TMEM_H */
