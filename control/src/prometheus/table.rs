//! Every metric family that the page has.

use crate::api::for_each_pool_counter;

use super::metric::{Metric, Value};

const fn metric(
    name: &'static str,
    unit: &'static str,
    help: &'static str,
    value: Value,
) -> Metric {
    Metric {
        name,
        unit,
        help,
        value,
    }
}

/// Every family that the page has.
pub fn metrics() -> impl Iterator<Item = &'static Metric> {
    [PROCESS, DOMAIN, POOL_COUNTERS, GUEST, POOL]
        .into_iter()
        .flatten()
}

/// Of the process and of its host.
const PROCESS: &[Metric] = &[
    metric("tmem_build", "", "Version of tmem.", Value::Version),
    metric(
        "tmem_uptime",
        "seconds",
        "Time since the process started serving pages.",
        Value::ProcessSeconds(|s| s.uptime_seconds),
    ),
    metric(
        "tmem_budget",
        "bytes",
        "Memory that all domains together may use.",
        Value::Process(|s| Some(s.budget)),
    ),
    metric(
        "tmem_used",
        "bytes",
        "Memory in use: payload, slab waste and metadata.",
        Value::Process(|s| Some(s.used)),
    ),
    metric(
        "tmem_saved",
        "bytes",
        "Memory charged to domains beyond what is used, because they share pages.",
        Value::Process(|s| Some(s.saved)),
    ),
    metric(
        "tmem_freeable",
        "bytes",
        "Memory held by ephemeral pages, which the host can have back at once.",
        Value::Process(|s| Some(s.freeable)),
    ),
    metric(
        "tmem_process_descriptors",
        "",
        "Descriptors that the process has open.",
        Value::Process(|s| s.process.as_ref().map(|p| p.descriptors)),
    ),
    metric(
        "tmem_process_descriptors_limit",
        "",
        "Descriptors that the process may have open; no sample without a limit.",
        Value::Process(|s| s.process.as_ref()?.descriptors_limit),
    ),
    metric(
        "tmem_process_mappings",
        "",
        "Mappings of memory that the process has.",
        Value::Process(|s| s.process.as_ref().map(|p| p.mappings)),
    ),
    metric(
        "tmem_process_mappings_limit",
        "",
        "Mappings of memory that a process may have (vm.max_map_count).",
        Value::Process(|s| s.process.as_ref()?.mappings_limit),
    ),
    metric(
        "tmem_control_connections",
        "",
        "Connections to a control socket that were accepted.",
        Value::Sockets(|c| c.accepted),
    ),
    metric(
        "tmem_control_rejected",
        "",
        "Connections to a control socket without the reply that they asked for, by reason.",
        Value::SocketReasons(|c| &c.rejected),
    ),
    metric(
        "tmem_host_limit",
        "bytes",
        "Memory of the machine, or limit of the control group above the process that has the least to spare.",
        Value::Host(|h| h.limit),
    ),
    metric(
        "tmem_host_available",
        "bytes",
        "Memory that can be had there without ending a process or writing to swap.",
        Value::Host(|h| h.available),
    ),
    metric(
        "tmem_host_floor",
        "bytes",
        "Part of that which is left alone: pages that would need it are refused.",
        Value::Host(|h| h.floor),
    ),
    metric(
        "tmem_host_stalled",
        "",
        "1 while processes wait for memory there, and twice as much is left alone.",
        Value::Host(|h| h.stalled.into()),
    ),
    metric(
        "tmem_host_short",
        "",
        "1 while ephemeral pages are given up because the host is short of memory.",
        Value::Host(|h| h.short.into()),
    ),
    metric(
        "tmem_host_refusals",
        "",
        "Times that memory was refused to keep the floor.",
        Value::HostCounter(|h| h.refusals),
    ),
    metric(
        "tmem_host_bad",
        "pages",
        "Pages of host memory that were found bad, with the guests' pages on them.",
        Value::HostCounter(|h| h.bad_pages),
    ),
];

/// Of a domain as a whole.
const DOMAIN: &[Metric] = &[
    metric(
        "tmem_domain_segment",
        "bytes",
        "Memory behind own segments.",
        Value::Gauge(|d| Some(d.segment_bytes)),
    ),
    metric(
        "tmem_domain_slot",
        "bytes",
        "Slots in use in own segments.",
        Value::Gauge(|d| Some(d.slot_bytes)),
    ),
    metric(
        "tmem_domain_reserve",
        "bytes",
        "Part of the budget that only this domain may use.",
        Value::Gauge(|d| Some(d.reserve)),
    ),
    metric(
        "tmem_domain_limit",
        "bytes",
        "Hard cap of the domain; no sample when there is none.",
        Value::Gauge(|d| d.limit),
    ),
    metric(
        "tmem_domain_freeable",
        "bytes",
        "Memory held by ephemeral pages, which the host can have back at once.",
        Value::Gauge(|d| Some(d.freeable)),
    ),
    metric(
        "tmem_domain_weight",
        "",
        "Share in the memory that no guest has reserved.",
        Value::Gauge(|d| Some(d.weight.into())),
    ),
    metric(
        "tmem_domain_frozen",
        "",
        "1 while new pages are refused.",
        Value::Gauge(|d| Some(d.frozen.into())),
    ),
    metric(
        "tmem_refusals",
        "",
        "Pages refused, by reason.",
        Value::Reasons(|d| Some(&d.counters.refusals)),
    ),
];

macro_rules! domain_metrics {
    ($($(#[doc = $description:literal])* $name:ident: $kind:ident($metric:literal, $unit:literal),)*) => {
        &[$(metric(
            $metric,
            $unit,
            concat!($($description),*).trim_ascii(),
            Value::$kind(|d| Some(d.counters.$name)),
        )),*]
    };
}

/// What pools count, summed over those of a domain.
pub(super) const POOL_COUNTERS: &[Metric] = for_each_pool_counter!(domain_metrics);

/// Of the device of a guest, and of its front end.
const GUEST: &[Metric] = &[
    metric(
        "tmem_guest_connections",
        "",
        "Connections of a VMM to the socket of the guest.",
        Value::Counter(|d| d.connections),
    ),
    metric(
        "tmem_doorbell_exits",
        "",
        "Doorbell writes of request queues, each one an exit of the guest.",
        Value::Counter(|d| d.device.as_ref().map(|v| v.doorbell_exits)),
    ),
    metric(
        "tmem_requests",
        "",
        "Request chains taken from the queues and returned.",
        Value::Counter(|d| d.device.as_ref().map(|v| v.requests)),
    ),
    metric(
        "tmem_device_stored",
        "pages",
        "Pages that store requests put into a pool.",
        Value::Counter(|d| d.device.as_ref().map(|v| v.pages_stored)),
    ),
    metric(
        "tmem_device_loaded",
        "pages",
        "Pages that load requests found.",
        Value::Counter(|d| d.device.as_ref().map(|v| v.pages_loaded)),
    ),
    metric(
        "tmem_device_invalidated",
        "pages",
        "Pages that invalidate requests named.",
        Value::Counter(|d| d.device.as_ref().map(|v| v.pages_invalidated)),
    ),
    metric(
        "tmem_device_invalidated_objects",
        "",
        "Objects that were invalidated as a whole.",
        Value::Counter(|d| d.device.as_ref().map(|v| v.objects_invalidated)),
    ),
    metric(
        "tmem_request_refusals",
        "",
        "Requests and entries of requests that were not granted, by status.",
        Value::Reasons(|d| d.device.as_ref().map(|v| &v.refusals)),
    ),
    metric(
        "tmem_malformed_requests",
        "",
        "Request chains that broke a rule of the protocol, by rule.",
        Value::Reasons(|d| d.device.as_ref().map(|v| &v.malformed)),
    ),
    metric(
        "tmem_queue_faults",
        "",
        "Times the device had to stop because a ring made no sense.",
        Value::Counter(|d| d.device.as_ref().map(|v| v.queue_faults)),
    ),
    metric(
        "tmem_front_end_memory",
        "bytes",
        "Memory that the front end of the guest describes.",
        Value::Gauge(|d| d.front_end.as_ref().map(|v| v.memory_bytes)),
    ),
    metric(
        "tmem_front_end_touched",
        "bytes",
        "Granted to touch that memory before the guest did, page tables included.",
        Value::Counter(|d| d.front_end.as_ref().map(|v| v.touched_bytes)),
    ),
    metric(
        "tmem_front_end_touch_refusals",
        "",
        "Accesses that were refused to memory that had not been touched before.",
        Value::Counter(|d| d.front_end.as_ref().map(|v| v.touch_refusals)),
    ),
    metric(
        "tmem_front_end_stuck_mappings",
        "",
        "Mappings of that memory that could not be undone.",
        Value::Counter(|d| d.front_end.as_ref().map(|v| v.stuck_mappings)),
    ),
    metric(
        "tmem_guest_panics",
        "",
        "Panics of the thread of the guest.",
        Value::Counter(|d| d.front_end.as_ref().map(|v| v.panics)),
    ),
    metric(
        "tmem_device_resets",
        "",
        "Resets by the guest.",
        Value::Counter(|d| d.device.as_ref().map(|v| v.resets)),
    ),
    metric(
        "tmem_store_duration",
        "seconds",
        "Time from the copy of a page out of guest memory to its outcome.",
        Value::Latency(|v| &v.store_latency),
    ),
    metric(
        "tmem_load_duration",
        "seconds",
        "Time from looking a page up to the end of its copy into guest memory.",
        Value::Latency(|v| &v.load_latency),
    ),
];

/// Of a pool.
const POOL: &[Metric] = &[
    metric(
        "tmem_pool",
        "pages",
        "Pages held by the pool.",
        Value::PoolGauge(|p| p.counters.pages),
    ),
    metric(
        "tmem_pool_stored",
        "bytes",
        "Contents of the pages held by the pool, as compressed.",
        Value::PoolGauge(|p| p.counters.bytes_stored),
    ),
    metric(
        "tmem_pool_used",
        "bytes",
        "Memory charged for the pages of the pool.",
        Value::PoolGauge(|p| p.counters.bytes_used),
    ),
];
