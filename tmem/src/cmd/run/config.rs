//! The configuration of `tmem run`, checked as far as the arguments alone allow.

use std::path::PathBuf;
use std::time::Duration;

use tmem_base::{Size, SizeError};
use tmem_serve::Access;
use tmem_serve::access::AccessError;
use tmem_vmm::{ConsoleConfig, MAX_CPUS, MAX_DEVICES, MAX_MEMORY, MIN_CONSOLE_LIMIT, MIN_MEMORY};

use super::args::Args;

const PAGE: u64 = 4096;
/// Console file and its predecessor, unless the user says how much they may have.
const CONSOLE_LIMIT: u64 = 16 << 20;
/// In front of the user's words: a console on the serial port, reset through the keyboard controller (which works
/// without ACPI, too), and a panic ends the guest instead of hanging it.
const CMDLINE: &str = "console=ttyS0 reboot=k panic=-1";

/// A disk of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskConfig {
    pub(crate) path: PathBuf,
    pub(crate) read_only: bool,
}

/// A guest to start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
    pub(crate) disks: Vec<DiskConfig>,
    pub(crate) cpus: u8,
    /// Bytes, whole pages.
    pub(crate) memory: u64,
    /// Budget of the store in bytes; 0: no tmem device.
    pub(crate) tmem: u64,
    /// Bytes of host memory to leave alone; `None` is a part of what there is.
    pub(crate) host_reserve: Option<u64>,
    /// Whether pages stay in the memory of the host, which may else swap them out.
    pub(crate) mlock: bool,
    /// Threads that serve the store queues, not more than `cpus`; `None` is what suits the host.
    pub(crate) store_threads: Option<u16>,
    /// Socket of a service that has the store; then `tmem` is 0.
    pub(crate) tmem_socket: Option<PathBuf>,
    /// Complete, but for the entries of the devices.
    pub(crate) cmdline: String,
    pub(crate) control: Option<PathBuf>,
    /// Path of a second control socket that only shows statistics.
    pub(crate) statistics: Option<PathBuf>,
    /// Who can connect to it.
    pub(crate) statistics_access: Access,
    pub(crate) console: ConsoleConfig,
    /// For the guest to power itself off after a signal.
    pub(crate) grace: Duration,
}

/// Arguments that cannot be meant. Each text names the option.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ConfigError {
    #[error(
        "--{option}: {value:?} is not a size; write bytes, or a number with K, M, G or T, as in 96M"
    )]
    Size { option: &'static str, value: String },
    #[error("--memory: {0} bytes are not whole pages of 4096 from {MIN_MEMORY} to {MAX_MEMORY}")]
    Memory(u64),
    #[error("--cpus: {0:?} is not a number from 1 to {MAX_CPUS}")]
    Cpus(String),
    #[error("--store-threads: {0:?} is neither auto nor a number up to that of the CPUs, {1}")]
    StoreThreads(String, u8),
    #[error("--disk: {0:?} is not path=FILE or path=FILE,readonly")]
    Disk(String),
    #[error(
        "--console: {0:?} is not stdio, none, file=FILE or file=FILE,limit=SIZE with at least {MIN_CONSOLE_LIMIT} bytes"
    )]
    Console(String),
    #[error("--grace: {0:?} is not a number of seconds")]
    Grace(String),
    #[error("--mlock: there are no pages to keep in memory without --tmem")]
    NothingToLock,
    #[error("--store-threads: the guest has no stores without --tmem")]
    NothingToStore,
    #[error("--{option}: {why}")]
    Access { option: &'static str, why: String },
    #[error("--statistics: {} is the control socket already", .0.display())]
    SameSocket(PathBuf),
    #[error("--disk: a guest has at most {MAX_DEVICES} devices, these are {0}")]
    TooManyDevices(usize),
}

impl TryFrom<Args> for Config {
    type Error = ConfigError;

    fn try_from(args: Args) -> Result<Self, ConfigError> {
        let memory = size("memory", &args.memory)?;
        if !(MIN_MEMORY..=MAX_MEMORY).contains(&memory) || !memory.is_multiple_of(PAGE) {
            return Err(ConfigError::Memory(memory));
        }
        let tmem = size("tmem", &args.tmem)?;
        let disks = args
            .disk
            .iter()
            .map(|text| disk(text))
            .collect::<Result<Vec<_>, _>>()?;
        let devices = disks.len() + usize::from(tmem > 0 || args.tmem_socket.is_some());
        if devices > MAX_DEVICES {
            return Err(ConfigError::TooManyDevices(devices));
        }
        let cpus = args
            .cpus
            .parse()
            .ok()
            .filter(|cpus| (1..=MAX_CPUS).contains(cpus));
        let cpus = cpus.ok_or(ConfigError::Cpus(args.cpus))?;
        let store_threads = store_threads(args.store_threads, cpus)?;
        if args.mlock && tmem == 0 {
            return Err(ConfigError::NothingToLock);
        }
        if store_threads.is_some_and(|count| count > 0) && tmem == 0 {
            return Err(ConfigError::NothingToStore);
        }
        let socket = &args.statistics.statistics;
        if let Some(path) = socket.as_ref().filter(|_| *socket == args.control) {
            return Err(ConfigError::SameSocket(path.clone()));
        }
        let bad = |option| {
            move |error: AccessError| ConfigError::Access {
                option,
                why: error.to_string(),
            }
        };
        let mode = args.statistics.mode().map_err(bad("statistics-mode"))?;
        let group = args.statistics.group().map_err(bad("statistics-group"))?;
        let cmdline = match args.cmdline.trim() {
            "" => CMDLINE.to_owned(),
            words => format!("{CMDLINE} {words}"),
        };
        Ok(Self {
            kernel: args.kernel,
            initrd: args.initrd,
            disks,
            cpus,
            memory,
            tmem,
            host_reserve: args
                .host_reserve
                .map(|text| size("host-reserve", &text))
                .transpose()?,
            mlock: args.mlock,
            store_threads,
            tmem_socket: args.tmem_socket,
            cmdline,
            control: args.control,
            statistics: args.statistics.statistics,
            statistics_access: Access::new(mode, group),
            console: console(&args.console)?,
            grace: grace(args.grace)?,
        })
    }
}

/// Bytes of an option.
fn size(option: &'static str, text: &str) -> Result<u64, ConfigError> {
    let parsed = text.parse::<Size>().map(|size| size.0);
    parsed.map_err(|SizeError(value)| ConfigError::Size { option, value })
}

/// `auto`, or a number of threads that have a queue each.
fn store_threads(text: String, cpus: u8) -> Result<Option<u16>, ConfigError> {
    if text == "auto" {
        return Ok(None);
    }
    match text.parse() {
        Ok(count) if count <= u16::from(cpus) => Ok(Some(count)),
        _ => Err(ConfigError::StoreThreads(text, cpus)),
    }
}

/// `path=FILE[,readonly]`. A comma in a file name is not supported.
fn disk(text: &str) -> Result<DiskConfig, ConfigError> {
    let bad = || ConfigError::Disk(text.to_owned());
    let rest = text.strip_prefix("path=").ok_or_else(bad)?;
    let (path, read_only) = match rest.split_once(',') {
        None => (rest, false),
        Some((path, "readonly")) => (path, true),
        Some(_) => return Err(bad()),
    };
    if path.is_empty() {
        return Err(bad());
    }
    Ok(DiskConfig {
        path: path.into(),
        read_only,
    })
}

/// `stdio`, `none` or `file=FILE[,limit=SIZE]`. A comma in a file name is not supported.
fn console(text: &str) -> Result<ConsoleConfig, ConfigError> {
    let bad = || ConfigError::Console(text.to_owned());
    let (path, limit) = match text {
        "stdio" => return Ok(ConsoleConfig::Stdio),
        "none" => return Ok(ConsoleConfig::None),
        _ => {
            let rest = text.strip_prefix("file=").ok_or_else(bad)?;
            rest.split_once(',').unwrap_or((rest, ""))
        }
    };
    let limit = match limit {
        "" => CONSOLE_LIMIT,
        _ => {
            let value = limit.strip_prefix("limit=").ok_or_else(bad)?;
            size("console", value).map_err(|_| bad())?
        }
    };
    if path.is_empty() || text.ends_with(',') || limit < MIN_CONSOLE_LIMIT {
        return Err(bad());
    }
    Ok(ConsoleConfig::File {
        path: path.into(),
        limit,
    })
}

/// Whole seconds.
fn grace(text: String) -> Result<Duration, ConfigError> {
    match text.parse::<u32>() {
        Ok(seconds) => Ok(Duration::from_secs(seconds.into())),
        Err(_) => Err(ConfigError::Grace(text)),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(words: &[&str]) -> Result<Config, ConfigError> {
        let line = ["run", "--kernel", "k", "--initrd", "i"]
            .iter()
            .chain(words);
        Config::try_from(Line::try_parse_from(line).unwrap().args)
    }

    #[test]
    fn defaults_make_a_guest_with_a_console_and_without_tmem() {
        assert_eq!(
            parse(&[]).unwrap(),
            Config {
                kernel: "k".into(),
                initrd: "i".into(),
                disks: vec![],
                cpus: 1,
                memory: 256 << 20,
                tmem: 0,
                host_reserve: None,
                mlock: false,
                store_threads: None,
                tmem_socket: None,
                cmdline: CMDLINE.into(),
                control: None,
                statistics: None,
                statistics_access: Access::default(),
                console: ConsoleConfig::Stdio,
                grace: Duration::from_secs(10),
            }
        );
    }

    #[test]
    fn every_option_reaches_the_config() {
        let words = "--cpus 2 --memory 96M --tmem 1G --disk path=/a,readonly --disk path=b --control s --host-reserve 2G --cmdline tmem=1 \
                     --mlock --store-threads 2 --statistics t --statistics-mode 0640 --statistics-group 7 --console file=/c,limit=1M --grace 0";
        let config = parse(&words.split(' ').collect::<Vec<_>>()).unwrap();
        assert_eq!(
            (config.cpus, config.memory, config.tmem),
            (2, 96 << 20, 1 << 30)
        );
        assert_eq!(config.cmdline, format!("{CMDLINE} tmem=1"));
        assert_eq!(
            config.disks[0],
            DiskConfig {
                path: "/a".into(),
                read_only: true
            }
        );
        assert_eq!(
            config.disks[1],
            DiskConfig {
                path: "b".into(),
                read_only: false
            }
        );
        assert_eq!(config.control, Some("s".into()));
        assert!(config.mlock);
        assert_eq!(config.store_threads, Some(2));
        let access = Access::new(Some(0o640), Some(7));
        assert_eq!(
            (config.statistics, config.statistics_access),
            (Some("t".into()), access)
        );
        let console = ConsoleConfig::File {
            path: "/c".into(),
            limit: 1 << 20,
        };
        assert_eq!((config.console, config.grace), (console, Duration::ZERO));
        assert_eq!(config.host_reserve, Some(2 << 30));
    }

    #[test]
    fn a_console_is_bounded_also_where_nobody_says_how() {
        let parsed = |text: &str| parse(&["--console", text]).map(|config| config.console);
        assert_eq!(parsed("none"), Ok(ConsoleConfig::None));
        let file = |limit| ConsoleConfig::File {
            path: "c".into(),
            limit,
        };
        assert_eq!(parsed("file=c"), Ok(file(16 << 20)));
        assert_eq!(parsed("file=c,limit=8K"), Ok(file(8192)));
    }

    #[test]
    fn the_store_is_here_or_at_a_service() {
        let config = parse(&["--tmem-socket", "/run/vm1"]).unwrap();
        assert_eq!(config.tmem_socket, Some("/run/vm1".into()));
        assert_eq!(config.tmem, 0);
        let both = "run --kernel k --initrd i --tmem 1G --tmem-socket s".split(' ');
        let error = Line::try_parse_from(both).err().unwrap().to_string();
        assert!(error.contains("--tmem-socket"), "{error}");
    }

    #[test]
    fn there_are_store_threads_as_the_host_has_room_or_as_the_user_says() {
        let parsed = |words: &[&str]| parse(words).map(|config| config.store_threads);
        assert_eq!(parsed(&["--store-threads", "auto"]), Ok(None));
        assert_eq!(parsed(&["--store-threads=0"]), Ok(Some(0)));
        let four = ["--cpus=4", "--store-threads=4"];
        assert_eq!(parsed(&[&four[..], &["--tmem=1G"]].concat()), Ok(Some(4)));
        assert_eq!(parsed(&four), Err(ConfigError::NothingToStore));
        let at_service = "run --kernel k --initrd i --tmem-socket s --store-threads 1".split(' ');
        let error = Line::try_parse_from(at_service).err().unwrap().to_string();
        assert!(error.contains("--store-threads"), "{error}");
    }

    #[test]
    fn sizes_take_binary_suffixes_and_nothing_else() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("4k", 4096),
            ("96M", 96 << 20),
            ("1GiB", 1 << 30),
            ("2t", 2 << 40),
        ] {
            assert_eq!(size("tmem", text), Ok(bytes));
        }
        for text in [
            "",
            "M",
            "-1",
            "+1",
            "1.5G",
            "0x10",
            "1 M",
            "99999999999999999999",
            "99999999999T",
        ] {
            assert_eq!(
                size("tmem", text),
                Err(ConfigError::Size {
                    option: "tmem",
                    value: text.into()
                }),
                "{text:?}"
            );
        }
    }

    #[test]
    fn values_out_of_range_name_their_option() {
        let error = |words: &[&str]| parse(words).unwrap_err().to_string();
        for cpus in ["0", "9", "two", "-1", ""] {
            assert!(error(&[&format!("--cpus={cpus}")]).starts_with("--cpus: "));
        }
        for memory in ["0", "1M", "100000001", "2T"] {
            assert!(
                error(&["--memory", memory]).starts_with("--memory: "),
                "{memory}"
            );
        }
        assert!(error(&["--tmem", "much"]).starts_with("--tmem: "));
        assert!(error(&["--host-reserve", "much"]).starts_with("--host-reserve: "));
        for disk in [
            "file",
            "path=",
            "path=,readonly",
            "path=a,rw",
            "path=a,readonly,x",
        ] {
            assert!(error(&["--disk", disk]).starts_with("--disk: "), "{disk}");
        }
        for console in [
            "",
            "c",
            "file",
            "file=",
            "file=,limit=1M",
            "file=c,",
            "file=c,size=1M",
            "file=c,limit=",
            "file=c,limit=8191",
            "file=c,limit=1M,limit=1M",
            "stdio,limit=1M",
        ] {
            let error = error(&["--console", console]);
            assert!(error.starts_with("--console: "), "{console}: {error}");
        }
        assert!(error(&["--mlock"]).starts_with("--mlock: "));
        for threads in ["", "all", "-1", "3", "65536", "1.5"] {
            let error = error(&["--cpus=2", &format!("--store-threads={threads}")]);
            assert!(error.starts_with("--store-threads: "), "{error}");
        }
        let refused = |option: &str| error(&["--statistics", "t", option]);
        assert!(refused("--statistics-mode=rw").starts_with("--statistics-mode: "));
        assert!(refused("--statistics-group=no-such-group").starts_with("--statistics-group: "));
        assert!(refused("--control=t").starts_with("--statistics: t is"));
        for grace in ["", "-1", "1.5", "10s", "99999999999"] {
            let error = error(&[&format!("--grace={grace}")]);
            assert!(error.starts_with("--grace: "), "{error}");
        }
    }

    #[test]
    fn there_are_as_many_devices_as_lines() {
        let disks = ["--disk", "path=a"].repeat(MAX_DEVICES);
        assert!(parse(&disks).is_ok());
        assert_eq!(
            parse(&[disks.clone(), vec!["--tmem", "1M"]].concat()),
            Err(ConfigError::TooManyDevices(10))
        );
        assert_eq!(
            parse(&[disks, vec!["--tmem-socket", "s"]].concat()),
            Err(ConfigError::TooManyDevices(10))
        );
    }
}
