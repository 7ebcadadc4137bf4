// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio transcendent memory driver: the swap disk, /dev/tmemswapN.
 *
 * Synchronous, as zram is: a request is done when it was submitted. With
 * tmem.sync=0 the kernel reads ahead, as on other disks, and reads of one plug
 * share a request; then writes are done when they were submitted, and reads
 * when the plug is flushed.
 *
 * A block that was never written, or was discarded, reads as zeroes without
 * asking the host. One whose data the host took and does not give back is an
 * I/O error.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/highmem.h>
#include <linux/idr.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/pagemap.h>
#include <linux/slab.h>

#include "compat.h"
#include "plug.h"
#include "tmem.h"

#define TMEM_PAGE_SECTORS	(PAGE_SIZE >> SECTOR_SHIFT)

static bool tmem_sync = true;
module_param_named(sync, tmem_sync, bool, 0444);
MODULE_PARM_DESC(sync, "The swap disk is synchronous: the kernel does not read ahead (on by default)");

/**
 * struct tmem_disk - the disk; outlives the device while it is open
 * @disk: its representation in the block layer
 * @area: the blocks
 * @id: number in the name
 * @bounce_lock: protects @bounce; taken before the locks of tmem_load()
 * @bounce: for parts of blocks, which swap never asks for
 */
struct tmem_disk {
	struct gendisk *disk;
	struct tmem_area *area;
	int id;
	struct mutex bounce_lock;	/* protects bounce */
	struct page *bounce;
};

static DEFINE_IDA(tmem_disk_ida);

static int tmem_read_block(struct tmem_disk *td, sector_t index,
			   struct page *page)
{
	struct tmem_io io;

	tmem_io_begin(&io, td->area, VIRTIO_TMEM_OP_LOAD, false);
	io.fill = true;
	tmem_io_load(&io, index, page);
	return tmem_io_end(&io);
}

/* A piece of memory that does not cover one block. */
static int tmem_rw_part(struct tmem_disk *td, sector_t sector,
			struct bio_vec *bv, bool write)
{
	unsigned int done = 0;
	int err = 0;

	mutex_lock(&td->bounce_lock);
	while (!err && done < bv->bv_len) {
		sector_t at = sector + (done >> SECTOR_SHIFT);
		unsigned int offset = (at % TMEM_PAGE_SECTORS) << SECTOR_SHIFT;
		unsigned int len = min_t(unsigned int, bv->bv_len - done,
					 PAGE_SIZE - offset);
		sector_t index = at / TMEM_PAGE_SECTORS;

		err = tmem_read_block(td, index, td->bounce);
		if (!err && write) {
			memcpy_page(td->bounce, offset, bv->bv_page,
				    bv->bv_offset + done, len);
			err = tmem_store(td->area, index, td->bounce);
		} else if (!err) {
			memcpy_page(bv->bv_page, bv->bv_offset + done,
				    td->bounce, offset, len);
			flush_dcache_page(bv->bv_page);
		}
		done += len;
	}
	mutex_unlock(&td->bounce_lock);
	return err;
}

static bool tmem_is_block(sector_t sector, struct bio_vec *bv)
{
	return !bv->bv_offset && bv->bv_len == PAGE_SIZE &&
	       sector % TMEM_PAGE_SECTORS == 0;
}

static bool tmem_is_blocks(struct bio *bio)
{
	struct bvec_iter iter;
	struct bio_vec bv;

	bio_for_each_segment(bv, bio, iter) {
		if (!tmem_is_block(iter.bi_sector, &bv))
			return false;
	}
	return true;
}

static int tmem_rw_parts(struct tmem_disk *td, struct bio *bio)
{
	struct bvec_iter iter;
	struct bio_vec bv;
	int err = 0;

	bio_for_each_segment(bv, bio, iter) {
		err = tmem_rw_part(td, iter.bi_sector, &bv,
				   op_is_write(bio_op(bio)));
		if (err)
			break;
		cond_resched();
	}
	return err;
}

/* Blocks share requests. */
static int tmem_rw_blocks(struct tmem_disk *td, struct bio *bio)
{
	bool write = op_is_write(bio_op(bio));
	struct bvec_iter iter;
	struct tmem_io io;
	struct bio_vec bv;

	tmem_io_begin(&io, td->area, write ? VIRTIO_TMEM_OP_STORE :
		      VIRTIO_TMEM_OP_LOAD, bio_sectors(bio) > TMEM_PAGE_SECTORS);
	io.fill = true;
	bio_for_each_segment(bv, bio, iter) {
		sector_t index = iter.bi_sector / TMEM_PAGE_SECTORS;

		if (write)
			tmem_io_store(&io, index, bv.bv_page);
		else
			tmem_io_load(&io, index, bv.bv_page);
		if (io.err)
			break;
		cond_resched();
	}
	return tmem_io_end(&io);
}

static void tmem_bio_rw(struct tmem_disk *td, struct bio *bio)
{
	unsigned long start = bio_start_io_acct(bio);
	int err = tmem_is_blocks(bio) ? tmem_rw_blocks(td, bio) :
					tmem_rw_parts(td, bio);

	if (err)
		bio->bi_status = errno_to_blk_status(err);
	bio_end_io_acct(bio, start);
	bio_endio(bio);
}

/**
 * struct tmem_bios - bios that are read together
 * @plug: where they wait
 * @td: their disk, which is open until they end
 * @bios: the bios, of whole blocks
 * @blocks: how many blocks
 * @io: the loads
 */
struct tmem_bios {
	struct tmem_plug plug;
	struct tmem_disk *td;
	struct bio_list bios;
	unsigned int blocks;
	struct tmem_io io;
};

/* Several bios may read the same block: then it is missing in all of them */
static void tmem_bios_loaded(struct tmem_io *io, unsigned long index,
			     struct page *page, int err)
{
	struct tmem_bios *bios = container_of(io, struct tmem_bios, io);
	sector_t sector = (sector_t)index * TMEM_PAGE_SECTORS;
	struct bio *bio;

	if (!err)
		return;
	bio_list_for_each(bio, &bios->bios) {
		if (sector >= bio->bi_iter.bi_sector &&
		    sector < bio_end_sector(bio))
			bio->bi_status = errno_to_blk_status(err);
	}
}

static void tmem_bios_run(struct tmem_plug *plug)
{
	struct tmem_bios *bios = container_of(plug, struct tmem_bios, plug);
	unsigned long start = jiffies;
	struct bvec_iter iter;
	struct bio_vec bv;
	struct bio *bio;

	tmem_io_begin(&bios->io, bios->td->area, VIRTIO_TMEM_OP_LOAD,
		      bios->blocks > 1);
	bios->io.fill = true;
	bios->io.done = tmem_bios_loaded;
	bio_list_for_each(bio, &bios->bios) {
		bio_start_io_acct(bio);
		bio_for_each_segment(bv, bio, iter)
			tmem_io_load(&bios->io,
				     iter.bi_sector / TMEM_PAGE_SECTORS,
				     bv.bv_page);
	}
	tmem_io_end(&bios->io);
	bios->blocks = 0;
	while ((bio = bio_list_pop(&bios->bios))) {
		bio_end_io_acct(bio, start);
		bio_endio(bio);
	}
}

/* Return: whether the bio is read later, when the plug is flushed. */
static bool tmem_bios_add(struct tmem_disk *td, struct bio *bio)
{
	unsigned int blocks = bio_sectors(bio) / TMEM_PAGE_SECTORS;
	struct tmem_bios *bios;
	struct tmem_plug *plug;

	/* A large one is a request by itself */
	if (tmem_sync || blocks >= VIRTIO_TMEM_MAX_BATCH ||
	    !tmem_is_blocks(bio))
		return false;
	plug = tmem_plug_get(td, sizeof(*bios), tmem_bios_run);
	if (!plug)
		return false;
	bios = container_of(plug, struct tmem_bios, plug);
	bios->td = td;
	if (bios->blocks + blocks > VIRTIO_TMEM_MAX_BATCH)
		tmem_bios_run(plug);
	bio_list_add(&bios->bios, bio);
	bios->blocks += blocks;
	return true;
}

/* Whole blocks only: of a part of a block the rest has to stay. */
static void tmem_bio_discard(struct tmem_disk *td, struct bio *bio)
{
	sector_t first = DIV_ROUND_UP_SECTOR_T(bio->bi_iter.bi_sector,
					       TMEM_PAGE_SECTORS);
	sector_t last = bio_end_sector(bio) / TMEM_PAGE_SECTORS;

	for (; first < last; first++) {
		tmem_invalidate(td->area, first);
		cond_resched();
	}
	bio_endio(bio);
}

static void tmem_submit_bio(struct bio *bio)
{
	struct tmem_disk *td = bio->bi_bdev->bd_disk->private_data;

	switch (bio_op(bio)) {
	case REQ_OP_READ:
		if (tmem_bios_add(td, bio))
			break;
		fallthrough;
	case REQ_OP_WRITE:
		tmem_bio_rw(td, bio);
		break;
	case REQ_OP_DISCARD:
	case REQ_OP_WRITE_ZEROES:
		tmem_bio_discard(td, bio);
		break;
	default:
		bio->bi_status = BLK_STS_NOTSUPP;
		bio_endio(bio);
	}
}

#ifdef TMEM_HAVE_RW_PAGE
/*
 * After an error the caller comes again with a bio. For a write this is what
 * handles the error; a read would only fail again.
 */
static int tmem_rw_page(struct block_device *bdev, sector_t sector,
			struct page *page, enum req_op op)
{
	struct tmem_disk *td = bdev->bd_disk->private_data;
	sector_t index = sector / TMEM_PAGE_SECTORS;
	int err;

	if (PageTransHuge(page) || sector % TMEM_PAGE_SECTORS)
		return -EOPNOTSUPP;
	if (op_is_write(op))
		err = tmem_store(td->area, index, page);
	else
		err = tmem_read_block(td, index, page);
	if (err && op_is_write(op))
		return err;
	page_endio(page, op_is_write(op), err);
	return 0;
}
#endif

/* Under spinlocks of the swap code */
static void tmem_slot_free_notify(struct block_device *bdev,
				  unsigned long index)
{
	struct tmem_disk *td = bdev->bd_disk->private_data;

	tmem_invalidate(td->area, index);
}

static void tmem_disk_free(struct tmem_disk *td)
{
	if (td->bounce)
		__free_page(td->bounce);
	if (td->area)
		tmem_area_destroy(td->area);
	if (td->id >= 0)
		ida_free(&tmem_disk_ida, td->id);
	kfree(td);
}

/* The last user closed the disk, and the device is removed */
static void tmem_free_disk(struct gendisk *disk)
{
	tmem_disk_free(disk->private_data);
}

static const struct block_device_operations tmem_disk_ops = {
	.owner = THIS_MODULE,
	.submit_bio = tmem_submit_bio,
	.swap_slot_free_notify = tmem_slot_free_notify,
	.free_disk = tmem_free_disk,
};

#ifdef TMEM_HAVE_RW_PAGE
/* This entry point makes a disk synchronous for the swap code */
static const struct block_device_operations tmem_sync_disk_ops = {
	.owner = THIS_MODULE,
	.submit_bio = tmem_submit_bio,
	.swap_slot_free_notify = tmem_slot_free_notify,
	.rw_page = tmem_rw_page,
	.free_disk = tmem_free_disk,
};

static const struct block_device_operations *tmem_ops(void)
{
	return tmem_sync ? &tmem_sync_disk_ops : &tmem_disk_ops;
}
#else
static const struct block_device_operations *tmem_ops(void)
{
	return &tmem_disk_ops;
}
#endif

/**
 * tmem_block_attach() - make the swap disk of a device
 * @dev: device with a pool for it
 * @bytes: size of the disk
 *
 * Return: 0 or an error.
 */
int tmem_block_attach(struct tmem_dev *dev, u64 bytes)
{
	struct tmem_disk *td;
	int err = -ENOMEM;

	td = kzalloc(sizeof(*td), GFP_KERNEL);
	if (!td)
		return -ENOMEM;
	mutex_init(&td->bounce_lock);
	td->id = ida_alloc(&tmem_disk_ida, GFP_KERNEL);
	if (td->id < 0) {
		err = td->id;
		goto free;
	}
	td->bounce = alloc_page(GFP_KERNEL);
	if (!td->bounce)
		goto free;
	td->area = tmem_area_create(dev, TMEM_USER_BLOCK, td->id,
				    bytes >> PAGE_SHIFT);
	if (!td->area)
		goto free;

	td->disk = tmem_alloc_disk(tmem_sync);
	if (IS_ERR(td->disk)) {
		err = PTR_ERR(td->disk);
		goto free;
	}
	/* No major: the block layer has a range for such disks */
	td->disk->minors = 0;
	td->disk->flags |= GENHD_FL_NO_PART;
	td->disk->fops = tmem_ops();
	td->disk->private_data = td;
	snprintf(td->disk->disk_name, DISK_NAME_LEN, "tmemswap%d", td->id);
	set_capacity(td->disk, td->area->nr_pages * TMEM_PAGE_SECTORS);

	err = device_add_disk(&dev->vdev->dev, td->disk, NULL);
	if (err) {
		/* Of a disk that was not added free_disk is not called */
		put_disk(td->disk);
		goto free;
	}
	dev->disk = td;
	return 0;

free:
	tmem_disk_free(td);
	return err;
}

/* The queues of the device are closed: pending requests fail. */
void tmem_block_detach(struct tmem_dev *dev)
{
	struct tmem_disk *td = dev->disk;

	if (!td)
		return;
	dev->disk = NULL;
	del_gendisk(td->disk);
	put_disk(td->disk);
}
