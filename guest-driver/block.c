// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio transcendent memory driver: the swap disk, /dev/tmemswapN.
 *
 * Synchronous, as zram is: a request is done when it was submitted. A block
 * that was never written, or was discarded, reads as zeroes without asking the
 * host. One whose data the host took and does not give back is an I/O error.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/highmem.h>
#include <linux/idr.h>
#include <linux/module.h>
#include <linux/pagemap.h>
#include <linux/slab.h>

#include "compat.h"
#include "tmem.h"

#define TMEM_PAGE_SECTORS	(PAGE_SIZE >> SECTOR_SHIFT)

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
#ifdef TMEM_HAVE_RW_PAGE
	.rw_page = tmem_rw_page,
#endif
	.free_disk = tmem_free_disk,
};

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

	td->disk = tmem_alloc_disk();
	if (IS_ERR(td->disk)) {
		err = PTR_ERR(td->disk);
		goto free;
	}
	/* No major: the block layer has a range for such disks */
	td->disk->minors = 0;
	td->disk->flags |= GENHD_FL_NO_PART;
	td->disk->fops = &tmem_disk_ops;
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
