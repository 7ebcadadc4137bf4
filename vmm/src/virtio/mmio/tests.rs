//! The register model, rule by rule (virtio 1.2; the numbers are its sections).

use std::sync::atomic::AtomicU32;

use super::*;

const ACK: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;

#[derive(Default)]
struct Probe {
    activated: AtomicU32,
    notified: AtomicU32,
    reset: AtomicU32,
    features: AtomicU64,
}

impl VirtioDevice for Probe {
    fn device_id(&self) -> u32 {
        60
    }
    fn features(&self) -> u64 {
        0b101
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![8, 16]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(u8::try_from(offset).unwrap_or(0));
    }
    fn activate(&self, features: u64, _queues: &Arc<Queues>) {
        self.features
            .store(features & !TRANSPORT_FEATURES, Ordering::SeqCst);
        self.activated.fetch_add(1, Ordering::SeqCst);
    }
    fn notify(&self, _queue: u16, _queues: &Queues) {
        self.notified.fetch_add(1, Ordering::SeqCst);
    }
    fn reset(&self) {
        self.reset.fetch_add(1, Ordering::SeqCst);
    }
}

struct Rig {
    probe: Arc<Probe>,
    transport: MmioTransport,
}

impl Rig {
    fn new() -> Self {
        let probe = Arc::new(Probe::default());
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let interrupt = Arc::new(Interrupt::new().unwrap());
        let stop = StopFlag::new().unwrap();
        let device: Arc<dyn VirtioDevice> = probe.clone();
        let transport = MmioTransport::new(device, mem, interrupt, stop).unwrap();
        Self { probe, transport }
    }

    fn read(&self, offset: u64) -> u32 {
        let mut data = [0xaa; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    fn status(&self) -> u32 {
        self.read(reg::STATUS)
    }

    fn accept(&self, features: u64) {
        self.write(reg::STATUS, ACK);
        self.write(reg::STATUS, ACK | DRIVER);
        self.write(reg::DRIVER_FEATURES_SEL, 0);
        self.write(reg::DRIVER_FEATURES, low(features));
        self.write(reg::DRIVER_FEATURES_SEL, 1);
        self.write(reg::DRIVER_FEATURES, high(features));
        self.write(reg::STATUS, ACK | DRIVER | FEATURES_OK);
    }

    fn setup_queue(&self, index: u32, size: u32, desc: u64) {
        self.write(reg::QUEUE_SEL, index);
        self.write(reg::QUEUE_NUM, size);
        for (low_register, high_register, address) in [
            (reg::QUEUE_DESC_LOW, reg::QUEUE_DESC_HIGH, desc),
            (reg::QUEUE_DRIVER_LOW, reg::QUEUE_DRIVER_HIGH, 0x2000),
            (reg::QUEUE_DEVICE_LOW, reg::QUEUE_DEVICE_HIGH, 0x3000),
        ] {
            self.write(low_register, low(address));
            self.write(high_register, high(address));
        }
        self.write(reg::QUEUE_READY, 1);
    }

    fn start() -> Self {
        let rig = Self::new();
        rig.accept(1 << 32 | 1);
        rig.setup_queue(1, 16, 0x1000);
        rig.write(reg::STATUS, ACK | DRIVER | FEATURES_OK | DRIVER_OK);
        rig
    }
}

#[test]
fn identity_registers_are_those_of_version_2() {
    let rig = Rig::new();
    assert_eq!(rig.read(reg::MAGIC_VALUE), 0x7472_6976);
    assert_eq!((rig.read(reg::VERSION), rig.read(reg::DEVICE_ID)), (2, 60));
    assert_eq!(rig.status(), 0);
}

#[test]
fn features_are_offered_in_two_words_and_none_behind_them() {
    let rig = Rig::new();
    assert_eq!(rig.read(reg::DEVICE_FEATURES), 0b101 | 1 << 28 | 1 << 29);
    rig.write(reg::DEVICE_FEATURES_SEL, 1);
    assert_eq!(rig.read(reg::DEVICE_FEATURES), 1);
    rig.write(reg::DEVICE_FEATURES_SEL, 2);
    assert_eq!(rig.read(reg::DEVICE_FEATURES), 0);
}

#[test]
fn features_ok_stays_clear_without_version_1_or_with_what_was_not_offered() {
    for features in [0, 1, 1 << 32 | 2, 1 << 32 | 1 << 40] {
        let rig = Rig::new();
        rig.accept(features);
        assert_eq!(rig.status(), ACK | DRIVER, "{features:#x}");
        rig.write(reg::STATUS, ACK | DRIVER | FEATURES_OK | DRIVER_OK);
        assert_eq!(rig.probe.activated.load(Ordering::SeqCst), 0);
    }
}

#[test]
fn features_cannot_change_after_features_ok_or_before_driver() {
    let rig = Rig::new();
    rig.write(reg::DRIVER_FEATURES, 1);
    rig.accept(1 << 32);
    rig.write(reg::DRIVER_FEATURES_SEL, 0);
    rig.write(reg::DRIVER_FEATURES, 0b101);
    rig.write(reg::STATUS, ACK | DRIVER | FEATURES_OK | DRIVER_OK);
    assert_eq!(rig.probe.features.load(Ordering::SeqCst), 0);
}

#[test]
fn activation_hands_over_the_device_bits_once() {
    let rig = Rig::start();
    assert_eq!(rig.status(), ACK | DRIVER | FEATURES_OK | DRIVER_OK);
    rig.write(reg::STATUS, ACK | DRIVER | FEATURES_OK | DRIVER_OK);
    assert_eq!(rig.probe.activated.load(Ordering::SeqCst), 1);
    assert_eq!(rig.probe.features.load(Ordering::SeqCst), 1);
}

#[test]
fn status_bits_cannot_be_cleared_or_skipped() {
    let rig = Rig::new();
    rig.write(reg::STATUS, DRIVER_OK);
    assert_eq!(rig.status(), 0);
    rig.write(reg::STATUS, ACK | DRIVER);
    rig.write(reg::STATUS, ACK);
    assert_eq!(rig.status(), ACK | DRIVER);
    rig.write(reg::STATUS, ACK | DRIVER | DRIVER_OK);
    assert_eq!(rig.status(), ACK | DRIVER);
    rig.write(reg::STATUS, ACK | DRIVER | FAILED);
    assert_eq!(rig.status(), ACK | DRIVER | FAILED);
}

#[test]
fn a_failed_driver_cannot_start_the_device() {
    let rig = Rig::new();
    rig.accept(1 << 32);
    rig.write(reg::STATUS, ACK | DRIVER | FEATURES_OK | FAILED);
    rig.write(reg::STATUS, ACK | DRIVER | FEATURES_OK | FAILED | DRIVER_OK);
    assert_eq!(rig.probe.activated.load(Ordering::SeqCst), 0);
}

#[test]
fn a_queue_that_does_not_exist_has_maximum_0_and_is_never_ready() {
    let rig = Rig::new();
    rig.accept(1 << 32);
    for (queue, maximum) in [(0, 8), (1, 16), (2, 0), (u32::MAX, 0)] {
        rig.write(reg::QUEUE_SEL, queue);
        assert_eq!(rig.read(reg::QUEUE_NUM_MAX), maximum);
    }
    rig.write(reg::QUEUE_READY, 1);
    assert_eq!(rig.read(reg::QUEUE_READY), 0);
    assert_eq!(rig.status() & NEEDS_RESET, 0);
}

#[test]
fn queues_cannot_be_set_up_before_features_ok_nor_moved_while_ready() {
    let rig = Rig::new();
    rig.setup_queue(1, 16, 0x1000);
    assert_eq!(rig.read(reg::QUEUE_READY), 0);
    let rig = Rig::start();
    rig.write(reg::QUEUE_NUM, 4);
    rig.write(reg::QUEUE_DESC_LOW, 0x8000);
    let queue = rig.transport.queues.lock(1).unwrap();
    assert_eq!((queue.size(), queue.desc_table()), (16, 0x1000));
}

#[test]
fn impossible_rings_need_a_reset_and_raise_the_configuration_interrupt() {
    for (size, desc) in [
        (0, 0x1000),
        (3, 0x1000),
        (32, 0x1000),
        (0x1_0010, 0x1000),
        (16, 0x1008),
        (16, 1 << 20),
        (16, u64::MAX - 15),
    ] {
        let rig = Rig::new();
        rig.accept(1 << 32);
        rig.setup_queue(1, size, desc);
        assert_eq!(rig.read(reg::QUEUE_READY), 0, "{size} {desc:#x}");
        assert_ne!(rig.status() & NEEDS_RESET, 0);
        assert_eq!(rig.read(reg::INTERRUPT_STATUS), 2);
        rig.write(reg::STATUS, 0);
        assert_eq!((rig.status(), rig.read(reg::INTERRUPT_STATUS)), (0, 0));
    }
}

#[test]
fn a_queue_can_be_taken_out_of_use() {
    let rig = Rig::start();
    assert_eq!(rig.read(reg::QUEUE_READY), 1);
    rig.write(reg::QUEUE_READY, 0);
    assert_eq!(rig.read(reg::QUEUE_READY), 0);
    assert!(!rig.transport.queues.lock(1).unwrap().ready());
}

#[test]
fn doorbells_are_counted_and_reach_the_device_only_while_it_is_active() {
    let rig = Rig::new();
    rig.write(reg::QUEUE_NOTIFY, 1);
    assert_eq!(rig.probe.notified.load(Ordering::SeqCst), 0);
    let rig = Rig::start();
    for queue in [1, 1, 2, u32::MAX] {
        rig.write(reg::QUEUE_NOTIFY, queue);
    }
    assert_eq!(rig.probe.notified.load(Ordering::SeqCst), 2);
    assert_eq!(rig.transport.doorbell_exits(), [0, 2]);
    rig.transport.interrupt().needs_reset();
    rig.write(reg::QUEUE_NOTIFY, 1);
    assert_eq!(
        rig.probe.notified.load(Ordering::SeqCst),
        2,
        "broken until reset"
    );
}

#[test]
fn a_reset_forgets_everything_and_the_device_can_start_again() {
    let rig = Rig::start();
    rig.write(reg::STATUS, 0);
    assert_eq!((rig.status(), rig.read(reg::QUEUE_READY)), (0, 0));
    assert_eq!(rig.probe.reset.load(Ordering::SeqCst), 1);
    assert!(!rig.transport.queues.lock(1).unwrap().ready());
    rig.write(reg::QUEUE_NOTIFY, 1);
    assert_eq!(rig.probe.notified.load(Ordering::SeqCst), 0);
    rig.accept(1 << 32);
    rig.setup_queue(0, 8, 0x1000);
    rig.write(reg::STATUS, ACK | DRIVER | FEATURES_OK | DRIVER_OK);
    assert_eq!(rig.probe.activated.load(Ordering::SeqCst), 2);
}

#[test]
fn interrupts_are_acknowledged_bit_by_bit() {
    let rig = Rig::start();
    rig.transport.interrupt().used_ring();
    rig.transport.interrupt().config_changed();
    assert_eq!(rig.read(reg::INTERRUPT_STATUS), 3);
    rig.write(reg::INTERRUPT_ACK, 1);
    assert_eq!(rig.read(reg::INTERRUPT_STATUS), 2);
    assert_eq!(rig.transport.interrupt().line().read().unwrap(), 2);
}

#[test]
fn each_configuration_change_has_a_generation() {
    let rig = Rig::start();
    let before = rig.read(reg::CONFIG_GENERATION);
    rig.transport.interrupt().config_changed();
    assert_ne!(rig.read(reg::CONFIG_GENERATION), before);
}

#[test]
fn there_is_no_shared_memory_region() {
    let rig = Rig::new();
    assert_eq!(
        (rig.read(reg::SHM_LEN_LOW), rig.read(reg::SHM_LEN_HIGH)),
        (u32::MAX, u32::MAX)
    );
}

#[test]
fn registers_answer_only_to_their_own_width_and_configuration_to_any() {
    let rig = Rig::new();
    for width in [1, 2, 8] {
        let mut data = vec![0xaa; width];
        rig.transport.read(reg::MAGIC_VALUE, &mut data);
        assert!(data.iter().all(|byte| *byte == 0));
        rig.transport
            .write(reg::STATUS, &data.iter().map(|_| 1).collect::<Vec<u8>>());
        assert_eq!(rig.status(), 0);
        rig.transport.read(reg::CONFIG + 5, &mut data);
        assert!(data.iter().all(|byte| *byte == 5));
    }
    assert_eq!(rig.read(0x0cc), 0, "no register");
    rig.transport.read(u64::MAX, &mut [0; 4]);
}

#[test]
fn event_index_is_used_only_when_it_was_accepted() {
    for (features, enabled) in [(1 << 32, false), (1 << 32 | 1 << 29, true)] {
        let rig = Rig::new();
        rig.accept(features);
        rig.setup_queue(0, 8, 0x1000);
        assert_eq!(
            rig.transport.queues.lock(0).unwrap().event_idx_enabled(),
            enabled
        );
    }
}
