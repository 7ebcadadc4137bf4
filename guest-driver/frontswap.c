// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio transcendent memory driver: frontswap backend.
 *
 * The frontswap code keeps a map of the pages which the backend has, and asks
 * for no other. A page which it has was not written to the swap device: when
 * it cannot be had, -EIO tells swap_readpage() not to read the device instead.
 *
 * The pages of a readahead are collected in the plug of the task, and loaded
 * together: into the pages themselves, which are locked and in the swap cache,
 * so that their slots are neither freed nor stored to meanwhile. 1 tells
 * swap_readpage() that the page is marked and unlocked then.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/frontswap.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/swap.h>
#include <linux/swapfile.h>

#include "plug.h"
#include "tmem.h"

/* Taken in swapon, so before the lock of the device */
static DEFINE_MUTEX(tmem_frontswap_lock);
/* The device for new swap areas; protected by the lock */
static struct tmem_dev *tmem_frontswap_dev;
/* The backend cannot be unregistered */
static bool tmem_frontswap_registered;

/*
 * Set in swapon, before the first page, and cleared in swapoff, after the
 * last; the swap code orders that.
 */
static struct tmem_area *tmem_frontswap_areas[MAX_SWAPFILES];

static void tmem_frontswap_invalidate_area(unsigned int type)
{
	struct tmem_area *area = tmem_frontswap_areas[type];

	if (!area)
		return;
	tmem_frontswap_areas[type] = NULL;
	tmem_area_destroy(area);
}

static void tmem_frontswap_init(unsigned int type)
{
	unsigned long nr_pages = swap_info[type]->max;

	tmem_frontswap_invalidate_area(type);
	mutex_lock(&tmem_frontswap_lock);
	if (tmem_frontswap_dev) {
		tmem_frontswap_areas[type] =
			tmem_area_create(tmem_frontswap_dev,
					 TMEM_USER_FRONTSWAP, type, nr_pages);
		if (!tmem_frontswap_areas[type])
			pr_warn("no memory for swap area %u, it stays without\n",
				type);
	}
	mutex_unlock(&tmem_frontswap_lock);
}

static int tmem_frontswap_store(unsigned int type, pgoff_t offset,
				struct page *page)
{
	struct tmem_area *area = tmem_frontswap_areas[type];

	if (!area || PageTransHuge(page))
		return -EINVAL;
	return tmem_store(area, offset, page);
}

/* More pages than a cluster has by default, vm.page-cluster */
#define TMEM_READAHEAD_PAGES	32

/**
 * struct tmem_readahead - pages of a swap area that are loaded together
 * @plug: where they wait
 * @area: their area
 * @count: how many
 * @load: the pages, with a reference
 */
struct tmem_readahead {
	struct tmem_plug plug;
	struct tmem_area *area;
	unsigned int count;
	struct {
		unsigned long index;
		struct page *page;
	} load[TMEM_READAHEAD_PAGES];
};

static void tmem_readahead_done(struct tmem_io *io, unsigned long index,
				struct page *page, int err)
{
	if (err) {
		SetPageError(page);
		ClearPageUptodate(page);
		pr_alert_ratelimited("read error on a page of a swap area\n");
	} else {
		SetPageUptodate(page);
	}
	unlock_page(page);
	put_page(page);
}

static void tmem_readahead_run(struct tmem_plug *plug)
{
	struct tmem_readahead *ra = container_of(plug, struct tmem_readahead,
						 plug);
	struct tmem_io io;
	unsigned int i;

	tmem_io_begin(&io, ra->area, VIRTIO_TMEM_OP_LOAD, ra->count > 1);
	io.done = tmem_readahead_done;
	for (i = 0; i < ra->count; i++)
		tmem_io_load(&io, ra->load[i].index, ra->load[i].page);
	tmem_io_end(&io);
	ra->count = 0;
}

/* Return: whether the page is loaded later, when the plug is flushed. */
static bool tmem_readahead_add(struct tmem_area *area, unsigned long index,
			       struct page *page)
{
	struct tmem_readahead *ra;
	struct tmem_plug *plug;

	/* One outside the swap cache is given up by a task that is killed */
	if (!PageSwapCache(page))
		return false;
	plug = tmem_plug_get(area, sizeof(*ra), tmem_readahead_run);
	if (!plug)
		return false;
	ra = container_of(plug, struct tmem_readahead, plug);
	ra->area = area;
	if (ra->count == TMEM_READAHEAD_PAGES)
		tmem_readahead_run(plug);
	get_page(page);
	ra->load[ra->count].index = index;
	ra->load[ra->count++].page = page;
	return true;
}

static int tmem_frontswap_load(unsigned int type, pgoff_t offset,
			       struct page *page)
{
	struct tmem_area *area = tmem_frontswap_areas[type];

	if (!area)
		return -EIO;
	if (tmem_readahead_add(area, offset, page))
		return 1;
	return tmem_load(area, offset, page) ? -EIO : 0;
}

static void tmem_frontswap_invalidate_page(unsigned int type, pgoff_t offset)
{
	struct tmem_area *area = tmem_frontswap_areas[type];

	if (area)
		tmem_invalidate(area, offset);
}

static const struct frontswap_ops tmem_frontswap_ops = {
	.init = tmem_frontswap_init,
	.store = tmem_frontswap_store,
	.load = tmem_frontswap_load,
	.invalidate_page = tmem_frontswap_invalidate_page,
	.invalidate_area = tmem_frontswap_invalidate_area,
};

/**
 * tmem_frontswap_attach() - use a device for swap areas from now on
 * @dev: device with a pool for it
 *
 * Takes the one slot for a backend, in the initcalls of devices: zswap comes
 * later and finds it taken.
 *
 * Return: 0, or -EBUSY when there is another device or another backend.
 */
int tmem_frontswap_attach(struct tmem_dev *dev)
{
	int err = 0;

	mutex_lock(&tmem_frontswap_lock);
	if (tmem_frontswap_dev) {
		err = -EBUSY;
	} else if (!tmem_frontswap_registered) {
		err = frontswap_register_ops(&tmem_frontswap_ops) ? -EBUSY : 0;
		tmem_frontswap_registered = !err;
	}
	if (!err)
		tmem_frontswap_dev = dev;
	mutex_unlock(&tmem_frontswap_lock);
	return err;
}

void tmem_frontswap_detach(struct tmem_dev *dev)
{
	mutex_lock(&tmem_frontswap_lock);
	if (tmem_frontswap_dev == dev)
		tmem_frontswap_dev = NULL;
	mutex_unlock(&tmem_frontswap_lock);
}
