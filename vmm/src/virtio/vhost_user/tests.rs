//! A scripted service: whatever it does, there is one clear error or a device that needs a reset, and no wait without
//! an end.

use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::mock::*;
use super::*;
use crate::layout;
use crate::stop::StopFlag;
use crate::virtio::mmio::MmioTransport;
use crate::virtio::{Interrupt, VirtioDevice};

/// One line, for people.
fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    assert!(!text.contains('\n'), "{text}");
    text
}

fn refused(mock: &Mock) -> ServiceError {
    mock.connect()
        .expect_err("a service of this kind is refused")
}

#[test]
fn handshake_with_a_good_service_gives_its_features_queues_and_configuration() {
    for protocol in [PROTOCOL, PROTOCOL | REPLY_ACK, 1 << 9] {
        let mock = Mock::offering(protocol, |_, _| Act::Well);
        let device = mock.connect().unwrap();
        assert_eq!(device.features(), 0b101);
        assert_eq!(device.queue_sizes(), [16, 256]);
        let mut page_size = [0; 4];
        device.read_config(0, &mut page_size);
        assert_eq!(page_size, 4096u32.to_le_bytes());
        let mut behind = [7; 4];
        device.read_config(u64::MAX, &mut behind);
        assert_eq!(behind, [7; 4]);
        assert!(device.stats().connected);
    }
}

#[test]
fn a_service_that_closes_in_the_handshake_is_one_clear_error() {
    for code in [
        GET_FEATURES,
        SET_OWNER,
        GET_PROTOCOL_FEATURES,
        SET_PROTOCOL_FEATURES,
        GET_QUEUE_NUM,
        GET_CONFIG,
    ] {
        let mock = Mock::new(move |_, at| if at == code { Act::Close } else { Act::Well });
        let error = refused(&mock);
        assert!(matches!(error, ServiceError::Failed { .. }), "{error:?}");
        assert!(text(&error).contains("/vm1 failed in "), "{}", text(&error));
    }
}

#[test]
fn answers_that_break_the_protocol_are_one_clear_error() {
    for code in [
        GET_FEATURES,
        GET_PROTOCOL_FEATURES,
        GET_QUEUE_NUM,
        GET_CONFIG,
    ] {
        let good = answer(code, PROTOCOL, &[]).unwrap();
        let mut huge = message(code, &good);
        huge[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut no_reply = message(code, &good);
        no_reply[4] = 1;
        let mut version = message(code, &good);
        version[4] = 6;
        for bytes in [
            vec![0xff; 4096],
            vec![0; 4096],
            message(code + 1, &good),
            huge,
            no_reply,
            version,
        ] {
            let raw = bytes.clone();
            let mock = Mock::new(move |_, at| {
                if at == code {
                    Act::Raw(raw.clone())
                } else {
                    Act::Well
                }
            });
            let error = refused(&mock);
            let head = &bytes[..12];
            assert!(
                matches!(error, ServiceError::Failed { .. }),
                "{code} {head:?}: {error:?}"
            );
            text(&error);
        }
    }
}

#[test]
fn what_a_service_must_offer_is_named_when_it_does_not() {
    for (code, body, words) in [
        (GET_FEATURES, number(FEATURES & !VERSION_1), "VERSION_1"),
        (GET_FEATURES, number(VERSION_1), "protocol features"),
        (GET_PROTOCOL_FEATURES, number(1), "configuration space"),
        (GET_QUEUE_NUM, number(1), "1 queues in all"),
        (GET_CONFIG, config(8192, 1, 64), "8192"),
        (GET_CONFIG, config(4096, 0, 64), "0 request queues"),
        (GET_CONFIG, config(4096, 129, 64), "129 request queues"),
        (
            GET_FEATURES,
            number(FEATURES | 1 << 4),
            "0 of its 1 request queues",
        ),
        (GET_CONFIG, config(4096, 1, 0), "no page"),
    ] {
        let mock = Mock::new(move |_, at| {
            if at == code {
                Act::Body(body.clone())
            } else {
                Act::Well
            }
        });
        let error = refused(&mock);
        assert!(
            matches!(error, ServiceError::Unsuitable { .. }),
            "{error:?}"
        );
        assert!(text(&error).contains(words), "{words}: {}", text(&error));
    }
}

#[test]
fn a_service_that_says_nothing_is_given_up_after_a_time() {
    for code in [
        GET_FEATURES,
        GET_PROTOCOL_FEATURES,
        GET_QUEUE_NUM,
        GET_CONFIG,
    ] {
        let mock = Mock::new(move |_, at| if at == code { Act::Stall } else { Act::Well });
        let timeouts = Timeouts {
            connect: Duration::from_millis(300),
            ..patient()
        };
        // Returns, though the thread that asked still waits: it is cut off.
        let error = VhostUser::connect(&mock.path, timeouts).unwrap_err();
        assert!(matches!(error, ServiceError::Silent { .. }), "{error:?}");
        assert!(text(&error).contains("another guest"), "{}", text(&error));
    }
}

#[test]
fn a_socket_that_is_not_there_is_waited_for_and_the_error_says_what_to_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm1");
    let timeouts = Timeouts {
        connect: Duration::from_millis(100),
        ..patient()
    };
    let error = VhostUser::connect(&path, timeouts).unwrap_err();
    assert!(matches!(error, ServiceError::Connect { .. }), "{error:?}");
    assert!(
        text(&error).contains("tmem serve --guest"),
        "{}",
        text(&error)
    );

    let late = path.clone();
    let (log, release) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let service = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        let (stream, _) = UnixListener::bind(late).unwrap().accept().unwrap();
        serve(stream, PROTOCOL, &log, &release, |_| Act::Well);
    });
    drop(VhostUser::connect(&path, patient()).unwrap());
    service.join().unwrap();
}

/// A device behind its registers, as a driver sees it.
struct Rig {
    device: Arc<VhostUser>,
    transport: Arc<MmioTransport>,
}

const STATUS: u64 = 0x70;
const ALL: u32 = 15;
const NEEDS_RESET: u32 = 64;

impl Rig {
    fn new(mock: &Mock, timeouts: Timeouts) -> Self {
        let device = Arc::new(VhostUser::connect(&mock.path, timeouts).unwrap());
        let mem = layout::guest_ram(16 << 20, true).unwrap();
        let interrupt = Arc::new(Interrupt::new().unwrap());
        let stop = StopFlag::new().unwrap();
        let transport = MmioTransport::new(
            Arc::clone(&device) as Arc<dyn VirtioDevice>,
            mem,
            interrupt,
            stop,
        );
        Self {
            device,
            transport: Arc::new(transport.unwrap()),
        }
    }

    fn write(&self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn needs_reset(&self) -> bool {
        self.read(STATUS) & NEEDS_RESET != 0
    }

    /// The steps of a driver from reset to DRIVER_OK, with both queues.
    fn bring_up(&self) {
        for status in [1, 3] {
            self.write(STATUS, status);
        }
        for (select, features) in [(0, 0b101), (1, 1)] {
            self.write(0x24, select);
            self.write(0x20, features);
        }
        self.write(STATUS, 11);
        for (queue, size) in [(0, 16), (1, 256)] {
            self.write(0x30, queue);
            self.write(0x38, size);
            for (register, page) in [(0x80, 1), (0x90, 3), (0xa0, 5)] {
                self.write(register, (page + 8 * queue) << 12);
                self.write(register + 4, 0);
            }
            self.write(0x44, 1);
        }
        self.write(STATUS, ALL);
        assert_eq!(self.read(STATUS) & ALL, ALL);
    }

    fn running(mock: &Mock, timeouts: Timeouts) -> Self {
        let rig = Self::new(mock, timeouts);
        let before = mock.count(GET_FEATURES);
        rig.bring_up();
        // The last of the messages that start the rings.
        eventually("the rings are not started", || {
            mock.count(GET_FEATURES) > before
        });
        rig
    }
}

#[test]
fn a_driver_that_is_ready_has_both_rings_started_and_a_reset_stops_them() {
    for protocol in [PROTOCOL, PROTOCOL | REPLY_ACK] {
        let mock = Mock::offering(protocol, |_, _| Act::Well);
        let rig = Rig::running(&mock, patient());
        for (code, times) in [
            (SET_FEATURES, 1),
            (SET_MEM_TABLE, 1),
            (SET_VRING_NUM, 2),
            (SET_VRING_ADDR, 2),
            (SET_VRING_BASE, 2),
            (SET_VRING_CALL, 2),
            (SET_VRING_ERR, 2),
            (SET_VRING_KICK, 2),
            (SET_VRING_ENABLE, 2),
        ] {
            assert_eq!(mock.count(code), times, "message {code}");
        }
        assert!(!rig.needs_reset());
        rig.write(STATUS, 0);
        assert_eq!(rig.read(STATUS), 0);
        assert_eq!(
            (mock.count(GET_VRING_BASE), mock.count(RESET_DEVICE)),
            (2, 1)
        );
        // The connection serves the next driver too.
        rig.bring_up();
        eventually("not started again", || mock.count(SET_VRING_ENABLE) == 4);
        assert_eq!(mock.count(SET_MEM_TABLE), 1, "the memory is still the same");
        assert_eq!(rig.device.stats().connections, 1);
    }
}

#[test]
fn a_service_that_fails_while_rings_start_is_a_device_that_needs_a_reset_and_can_come_back() {
    for code in [
        SET_FEATURES,
        SET_MEM_TABLE,
        SET_VRING_NUM,
        SET_VRING_ADDR,
        SET_VRING_KICK,
        SET_VRING_ENABLE,
    ] {
        // The driver's second try fails as well.
        let mock = Mock::new(move |connection, at| {
            if connection < 2 && at == code {
                Act::Close
            } else {
                Act::Well
            }
        });
        let rig = Rig::new(&mock, patient());
        for _ in 0..2 {
            rig.bring_up();
            eventually("the device does not say that it is broken", || {
                rig.needs_reset()
            });
            eventually("no configuration interrupt", || rig.read(0x60) & 2 == 2);
            assert_eq!(rig.device.stats().faults, 1, "one outage is one fault");
            rig.write(STATUS, 0);
            assert_eq!(rig.read(STATUS), 0);
        }
        rig.bring_up();
        eventually("not started again", || mock.count(SET_VRING_ENABLE) >= 2);
        eventually("no answer", || rig.device.stats().connections == 3);
        assert!(!rig.needs_reset());
        assert_eq!(rig.device.stats().faults, 1);
    }
}

#[test]
fn a_service_that_refuses_with_an_acknowledgment_breaks_the_device() {
    let mock = Mock::offering(PROTOCOL | REPLY_ACK, |_, at| match at {
        SET_MEM_TABLE => Act::Body(number(1)),
        _ => Act::Well,
    });
    let rig = Rig::new(&mock, patient());
    rig.bring_up();
    eventually("the refusal is not seen", || rig.needs_reset());
}

#[test]
fn a_running_service_that_closes_breaks_the_device() {
    let features = std::sync::atomic::AtomicUsize::new(0);
    let mock = Mock::new(move |_, at| match at {
        // The second time it ends the start of the rings.
        GET_FEATURES if features.fetch_add(1, Ordering::SeqCst) == 1 => Act::Last,
        _ => Act::Well,
    });
    let rig = Rig::running(&mock, patient());
    assert!(!rig.needs_reset());
    mock.release.store(true, Ordering::SeqCst);
    eventually("its end is not noticed", || rig.needs_reset());
    eventually("no configuration interrupt", || rig.read(0x60) & 2 == 2);
    let figures = rig.device.stats();
    assert_eq!((figures.connected, figures.faults), (false, 1));
    rig.write(STATUS, 0);
    assert_eq!(rig.read(STATUS), 0);
}

#[test]
fn a_service_that_closes_while_no_driver_uses_the_device_breaks_nothing() {
    let mock = Mock::new(|_, at| match at {
        RESET_DEVICE => Act::Close,
        _ => Act::Well,
    });
    let rig = Rig::running(&mock, patient());
    rig.write(STATUS, 0);
    assert_eq!(rig.read(STATUS), 0);
    eventually("its end is not noticed", || !rig.device.stats().connected);
    assert!(!rig.needs_reset(), "no driver uses the device");
    assert_eq!(rig.device.stats().faults, 0);
}

#[test]
fn calls_and_errors_of_the_service_are_interrupts_of_the_device() {
    let mock = Mock::new(|_, _| Act::Well);
    let rig = Rig::running(&mock, patient());
    assert_eq!(rig.read(0x60), 0);
    // The descriptors the service was given are these.
    let doors = rig.device.eventfds();
    doors.call.write(1).unwrap();
    eventually("no interrupt", || rig.read(0x60) == 1);
    rig.write(0x64, 1);
    doors.call.write(1).unwrap();
    eventually("no second interrupt", || rig.read(0x60) == 1);
    doors.error.write(1).unwrap();
    eventually("a broken ring is not told", || rig.needs_reset());
    rig.write(STATUS, 0);
    assert_eq!(rig.read(STATUS), 0, "the connection is still good");
    assert_eq!(rig.device.stats().connections, 1);
}

#[test]
fn rings_that_do_not_start_in_time_break_the_device_and_its_reset_waits_for_the_service() {
    let mock = Mock::new(|connection, at| match at {
        SET_VRING_ENABLE if connection == 0 => Act::Stall,
        _ => Act::Well,
    });
    let timeouts = Timeouts {
        start: Duration::from_millis(200),
        stop: Duration::from_millis(100),
        ..patient()
    };
    let rig = Rig::new(&mock, timeouts);
    rig.bring_up();
    // Rings that were never started need no message to stop.
    eventually("the message did not arrive", || {
        mock.count(SET_VRING_ENABLE) > 0
    });
    eventually("nothing breaks the device", || rig.needs_reset());
    // The service may still write to the guest's memory, so the driver must not believe that it stopped.
    rig.write(STATUS, 0);
    assert_ne!(rig.read(STATUS), 0, "the reset was confirmed by nobody");
    rig.write(STATUS, 1);
    rig.write(STATUS, 0);
    assert_ne!(rig.read(STATUS), 0);
    // Other registers answer meanwhile.
    assert_eq!(rig.read(0x8), 60);
    mock.release.store(true, Ordering::SeqCst);
    eventually("the reset is never confirmed", || rig.read(STATUS) == 0);
    rig.bring_up();
    eventually("no new connection", || rig.device.stats().connections == 2);
}

#[test]
fn a_vcpu_that_waits_for_a_reset_keeps_no_other_from_the_registers() {
    let mock = Mock::new(|_, at| match at {
        GET_VRING_BASE => Act::Stall,
        _ => Act::Well,
    });
    let rig = Rig::running(&mock, patient());
    let transport = Arc::clone(&rig.transport);
    let vcpu = std::thread::spawn(move || transport.write(STATUS, &[0; 4]));
    eventually("the reset does not reach the service", || {
        mock.count(GET_VRING_BASE) == 1
    });
    assert!(!vcpu.is_finished());
    assert_eq!(rig.read(0x60), 0, "the interrupt status can be read");
    rig.write(0x64, 3);
    assert_ne!(rig.read(STATUS), 0);
    mock.release.store(true, Ordering::SeqCst);
    vcpu.join().unwrap();
    assert_eq!(rig.read(STATUS), 0);
}

#[test]
fn a_device_is_dropped_at_any_time() {
    for code in [SET_FEATURES, SET_VRING_ENABLE, GET_VRING_BASE] {
        let mock = Mock::new(move |_, at| if at == code { Act::Stall } else { Act::Well });
        let timeouts = Timeouts {
            stop: Duration::from_millis(50),
            ..patient()
        };
        // Rings that are not started yet need no message to stop.
        let rig = if code == GET_VRING_BASE {
            let rig = Rig::running(&mock, timeouts);
            rig.write(STATUS, 0);
            rig
        } else {
            let rig = Rig::new(&mock, timeouts);
            rig.bring_up();
            rig
        };
        eventually("the message did not arrive", || mock.count(code) > 0);
        let Rig { device, transport } = rig;
        drop(transport);
        // Returns only when both threads are joined.
        drop(device);
    }
}
