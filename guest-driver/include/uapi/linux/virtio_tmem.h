/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Virtio transcendent memory device
 *
 * Copyright (c) 2026 The tmem authors
 *
 * This header is BSD licensed so anyone can use the definitions
 * to implement compatible drivers/servers:
 *
 * Redistribution and use in source and binary forms, with or without
 * modification, are permitted provided that the following conditions
 * are met:
 * 1. Redistributions of source code must retain the above copyright
 *    notice, this list of conditions and the following disclaimer.
 * 2. Redistributions in binary form must reproduce the above copyright
 *    notice, this list of conditions and the following disclaimer in the
 *    documentation and/or other materials provided with the distribution.
 * 3. Neither the name of the copyright holder nor the names of its
 *    contributors may be used to endorse or promote products derived from
 *    this software without specific prior written permission.
 * THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS
 * ``AS IS'' AND ANY EXPRESS OR IMPLIED WARRANTIES, INCLUDING, BUT NOT
 * LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS
 * FOR A PARTICULAR PURPOSE ARE DISCLAIMED.  IN NO EVENT SHALL THE
 * COPYRIGHT HOLDERS OR CONTRIBUTORS BE LIABLE FOR ANY DIRECT, INDIRECT,
 * INCIDENTAL, SPECIAL, EXEMPLARY, OR CONSEQUENTIAL DAMAGES (INCLUDING, BUT
 * NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR SERVICES; LOSS OF
 * USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER CAUSED AND
 * ON ANY THEORY OF LIABILITY, WHETHER IN CONTRACT, STRICT LIABILITY,
 * OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT
 * OF THE USE OF THIS SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF
 * SUCH DAMAGE.
 */

#ifndef _LINUX_VIRTIO_TMEM_H
#define _LINUX_VIRTIO_TMEM_H

#include <linux/types.h>
#include <linux/virtio_types.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_config.h>

/*
 * A virtio-tmem device keeps pages of the guest in memory of the host that
 * the guest cannot address. The guest hands a page over (store), asks for it
 * back (load) and gives it up (invalidate).
 *
 * Pages live in pools, which the driver creates and destroys. A page is found
 * by the pool, an object (three 64-bit words: an inode, a swap device, ...)
 * and the index of the page in that object.
 *
 * A pool is persistent or ephemeral. A page that a persistent pool accepted is
 * kept until it is overwritten or invalidated. A page in an ephemeral pool may
 * be dropped at any time, but a load never returns stale data. A load from a
 * private ephemeral pool also removes the page; from a persistent or a shared
 * pool it does not. A shared pool is an ephemeral pool that several guests use
 * under one group name.
 *
 * The device may refuse any store, for want of space or because the host froze
 * the guest. A store that was refused removes the page that was under its key:
 * a later load finds nothing, never the older data. Invalidating a page that
 * does not exist succeeds.
 *
 * Queue 0 is the event queue, queues 1 to num_request_queues are request
 * queues. The device may execute a request while the write to the queue's
 * doorbell is in progress, so that the answer is there when the write
 * completes. Requests of one queue are executed, and returned, in the order in
 * which they were made available. There is no order between queues: the driver
 * sends all operations on one key through one queue, or waits for one to be
 * returned before it makes the next available; and it waits for the answer of
 * CREATE_POOL before it uses the pool.
 *
 * With VIRTIO_TMEM_F_STORE_QUEUES, the last num_store_queues of the request
 * queues are store queues. The driver should send STORE, and INVALIDATE_PAGE of
 * the same keys, to the store queues, and everything else to the other request
 * queues. The device executes every operation on every queue. It may serve a
 * store queue in a thread of its own, so that the answer is not there when the
 * write to the doorbell completes.
 *
 * The id of a pool has 24 random bits: a driver that knows it is the driver
 * that created the pool. When the queues may have a new driver, a request for a
 * pool that does not exist frees the earlier pools, unless one of them was
 * named since.
 *
 * A request is one descriptor chain. It is two streams of bytes; where one
 * descriptor ends and the next begins has no meaning:
 *
 *   readable: struct virtio_tmem_req
 *             struct virtio_tmem_entry [count]
 *             STORE only: the pages, VIRTIO_TMEM_PAGE_SIZE * count bytes
 *   writable: struct virtio_tmem_resp
 *             __u8 status [count], one VIRTIO_TMEM_S_ value for each entry
 *             LOAD only: room for the pages, VIRTIO_TMEM_PAGE_SIZE * count
 *
 * The response tells whether the request was executed. If it was, the status
 * is VIRTIO_TMEM_S_OK and each entry has its own status; if not, the status
 * says why and no entry was executed. The entries of a request are executed in
 * their order. The page of an entry whose load failed is undefined.
 *
 * The device returns every chain once. A chain without room for the response is
 * returned with a length of 0. An inconsistent ring (an available index out of
 * range, a head that is no descriptor) makes the device set DEVICE_NEEDS_RESET.
 * A reset destroys the pools which the driver created.
 */

/* The device id is not assigned by the virtio specification. */
#define VIRTIO_ID_TMEM				60

/* --- virtio-tmem: feature bits --- */

/* Ephemeral pools can be created */
#define VIRTIO_TMEM_F_EPHEMERAL			0
/* Shared pools can be created, needs VIRTIO_TMEM_F_EPHEMERAL */
#define VIRTIO_TMEM_F_SHARED			1
/* The device uses the event queue and the pressure field */
#define VIRTIO_TMEM_F_EVENTS			2
/* Reserved: stores that are acknowledged before they are executed */
#define VIRTIO_TMEM_F_CREDITS			3
/* The last num_store_queues of the request queues are for stores */
#define VIRTIO_TMEM_F_STORE_QUEUES		4

/* --- virtio-tmem: queues and limits --- */

#define VIRTIO_TMEM_EVENT_QUEUE			0
#define VIRTIO_TMEM_FIRST_REQUEST_QUEUE		1

#define VIRTIO_TMEM_PAGE_SIZE			4096
/* Most entries in one request */
#define VIRTIO_TMEM_MAX_BATCH			64
/* Most descriptors in one chain, those of an indirect table included */
#define VIRTIO_TMEM_MAX_DESCRIPTORS		1024
/* Bytes of the name of a share group */
#define VIRTIO_TMEM_GROUP_LEN			24

/* --- virtio-tmem: guest -> host requests --- */

/* Create a pool; the answer has its id */
#define VIRTIO_TMEM_OP_CREATE_POOL		1
/* Destroy a pool and every page in it */
#define VIRTIO_TMEM_OP_DESTROY_POOL		2
/* Store pages */
#define VIRTIO_TMEM_OP_STORE			3
/* Load pages */
#define VIRTIO_TMEM_OP_LOAD			4
/* Invalidate pages */
#define VIRTIO_TMEM_OP_INVALIDATE_PAGE		5
/* Invalidate every page of one object */
#define VIRTIO_TMEM_OP_INVALIDATE_OBJECT	6

/* Flags of VIRTIO_TMEM_OP_CREATE_POOL; none: private and persistent */
#define VIRTIO_TMEM_POOL_EPHEMERAL		0x1
/* Join the share group named in object[], needs VIRTIO_TMEM_POOL_EPHEMERAL */
#define VIRTIO_TMEM_POOL_SHARED			0x2

struct virtio_tmem_req {
	/* VIRTIO_TMEM_OP_ */
	__le16 op;
	/*
	 * Number of entries: 1 to VIRTIO_TMEM_MAX_BATCH for STORE, LOAD and
	 * INVALIDATE_PAGE, 0 for the others.
	 */
	__le16 count;
	/* Id of the pool; for CREATE_POOL: VIRTIO_TMEM_POOL_ flags */
	__le32 pool;
	/*
	 * The object. For CREATE_POOL of a shared pool: the 24 bytes of the
	 * name of the share group, padded with zeroes. Zero for CREATE_POOL
	 * of other pools and for DESTROY_POOL.
	 */
	__le64 object[3];
};

struct virtio_tmem_entry {
	/* Index of the page in the object */
	__le32 index;
	/* Zero */
	__le32 reserved;
};

/* --- virtio-tmem: host -> guest response --- */

/* Done */
#define VIRTIO_TMEM_S_OK			0
/* LOAD: there is no such page */
#define VIRTIO_TMEM_S_NOT_FOUND			1
/* The limit of the guest or the budget of the host is used up */
#define VIRTIO_TMEM_S_NO_SPACE			2
/* STORE: the host accepts no new pages of this guest now */
#define VIRTIO_TMEM_S_FROZEN			3
/* There is no pool with this id */
#define VIRTIO_TMEM_S_NO_POOL			4
/* The request is malformed */
#define VIRTIO_TMEM_S_INVALID			5
/* Unknown operation or flag, or its feature was not negotiated */
#define VIRTIO_TMEM_S_UNSUPPORTED		6
/* CREATE_POOL: the host does not let the guest have this pool */
#define VIRTIO_TMEM_S_DENIED			7
/* The host could not allocate memory */
#define VIRTIO_TMEM_S_NO_MEMORY			8
/* LOAD: the page is lost. There is data of this key, but it is damaged */
#define VIRTIO_TMEM_S_IO_ERROR			9
/* CREATE_POOL: the guest has max_pools pools */
#define VIRTIO_TMEM_S_TOO_MANY_POOLS		10

struct virtio_tmem_resp {
	/* VIRTIO_TMEM_S_ value of the request as a whole */
	__u8 status;
	/* Zero */
	__u8 reserved;
	/* Number of entry statuses which follow */
	__le16 count;
	/* CREATE_POOL: id of the new pool, else zero */
	__le32 pool;
};

/* --- virtio-tmem: host -> guest events --- */

/* The pressure on the host's memory changed */
#define VIRTIO_TMEM_EVENT_PRESSURE		1
/* The limit of this guest changed */
#define VIRTIO_TMEM_EVENT_LIMITS		2

/* Levels of pressure */
#define VIRTIO_TMEM_PRESSURE_NONE		0
/* Ephemeral pages are being evicted */
#define VIRTIO_TMEM_PRESSURE_SOME		1
/* Stores are being refused */
#define VIRTIO_TMEM_PRESSURE_FULL		2

struct virtio_tmem_event {
	/* VIRTIO_TMEM_EVENT_; the driver ignores types it does not know */
	__le16 type;
	/* Zero */
	__le16 reserved;
	/* VIRTIO_TMEM_PRESSURE_ */
	__le32 level;
	/* The most that the pages of this guest may use, 0: no limit */
	__le64 limit_bytes;
	/* Memory that the pages of this guest use */
	__le64 used_bytes;
};

/* --- virtio-tmem: configuration --- */

struct virtio_tmem_config {
	/* VIRTIO_TMEM_PAGE_SIZE. Cannot change. */
	__le32 page_size;
	/* Number of request queues. Cannot change. */
	__le16 num_request_queues;
	/* Most entries in one request. Cannot change. */
	__le16 max_batch;
	/* Most pools at one time. Cannot change. */
	__le32 max_pools;
	/* VIRTIO_TMEM_PRESSURE_, valid with VIRTIO_TMEM_F_EVENTS */
	__le32 pressure;
	/* The most that the pages of this guest may use, 0: no limit */
	__le64 limit_bytes;
	/* Size which the host suggests for a swap disk, 0: guest decides */
	__le64 swap_bytes;
	/*
	 * How many of the request queues, the last ones, are store queues;
	 * fewer than num_request_queues. Cannot change.
	 * Valid with VIRTIO_TMEM_F_STORE_QUEUES, else zero.
	 */
	__le16 num_store_queues;
	/*
	 * How many entries the device would like at most in one STORE, 1 to
	 * max_batch. A hint: it takes up to max_batch. Cannot change.
	 * Valid with VIRTIO_TMEM_F_STORE_QUEUES, else zero.
	 */
	__le16 store_batch;
	/* Zero */
	__le32 reserved;
};

#endif /* _LINUX_VIRTIO_TMEM_H */
