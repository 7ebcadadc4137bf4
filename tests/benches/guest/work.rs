//! Whole programs in a guest with a third of the memory that they need: a compiler, and Redis. On tmem, and on zram in a
//! guest that has as much more memory as the store held.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tmem_tests::console::Console;
use tmem_tests::paths;
use tmem_tests::service::Service;
use tmem_tests::stats::stats_of;
use tmem_tests::uml::guest::{END, Guest, Setup};

use crate::figures::middle;
use crate::setup::{on, say};
use crate::sources;

/// MiB of the guest in which the need of a program is measured: more than that.
const AMPLE: u32 = 640;
/// Size of a swap disk: more than is ever on it.
const SWAP: &str = "1G";
/// Time between two looks at what the store holds.
const GLANCE: Duration = Duration::from_millis(250);

/// How much to do.
pub(crate) struct Scale {
    /// Times that each disk has its turn.
    pub(crate) rounds: usize,
    /// Functions of the C file, and numbers in a table of it.
    pub(crate) functions: u32,
    pub(crate) table: u32,
    /// Records of the database, and requests of each pass of its benchmark.
    pub(crate) keys: u32,
    pub(crate) requests: u32,
}

impl Scale {
    pub(crate) const QUICK: Self = Self {
        rounds: 1,
        functions: 30,
        table: 30_000,
        keys: 30_000,
        requests: 10_000,
    };
    pub(crate) const FULL: Self = Self {
        rounds: 3,
        functions: 60,
        table: 60_000,
        keys: 60_000,
        requests: 20_000,
    };
}

/// A program, and what a guest does with it.
pub(crate) struct Program {
    /// Its name here and in the report.
    pub(crate) name: &'static str,
    /// What it does, in words.
    pub(crate) what: &'static str,
    /// What the parts of its time are called.
    pub(crate) parts: &'static [&'static str],
    prepare: fn(&Path, &Scale) -> Result<()>,
    /// Shell commands, with `stamp` between the parts. What comes behind the last stamp is not timed.
    commands: fn(&Scale) -> String,
    /// What must be the same in each run; an error when the result is wrong. It is in the folder, or on the console.
    result: fn(&Path, &Path, &Console) -> Result<Vec<u8>>,
}

/// Both.
pub(crate) const PROGRAMS: [Program; 2] = [
    Program {
        name: "cc",
        what: "cc1 -O2 on a C file of functions with large switches, and tables",
        parts: &["compile"],
        prepare: |folder, scale| {
            sources::c_file(&folder.join("source.i"), scale.functions, scale.table)
                .context("cannot write the C file")
        },
        // Without these parameters, how often it collects garbage depends on the memory of the machine.
        commands: |_| {
            "/usr/lib/gcc/x86_64-linux-gnu/12/cc1 -quiet -fpreprocessed -O2 --param ggc-min-expand=100 --param ggc-min-heapsize=131072 \
             /io/source.i -o /io/output.s; echo work status $?; stamp compile"
                .to_owned()
        },
        result: |_, folder, _| {
            let output = fs::read(folder.join("output.s")).context("no output")?;
            ensure!(output.len() > 100_000, "a short output");
            Ok(output)
        },
    },
    Program {
        name: "redis",
        what: "redis-server: filled, read by redis-benchmark, then the same with writes and a background save",
        parts: &["start", "fill", "get", "save"],
        prepare: |folder, scale| {
            sources::records(&folder.join("fill"), scale.keys, 1, 777)
                .and_then(|()| sources::records(&folder.join("update"), scale.keys, 7, 778))
                .context("cannot write the records")
        },
        commands: redis,
        result: |programs, folder, console| {
            check_dump(programs, &folder.join("dump.rdb"))?;
            let lines = console.lines().iter();
            let said: Vec<_> = lines
                .filter_map(|line| line.strip_prefix("work holds "))
                .collect();
            ensure!(
                said.len() == 2,
                "the server did not say what it holds: {said:?}"
            );
            Ok(said.join(" ").into_bytes())
        },
    },
];

fn redis(scale: &Scale) -> String {
    let Scale { keys, requests, .. } = scale;
    let get = format!(
        "redis-benchmark -s /tmp/redis -t get -r {keys} -n {requests} -c 8 -P 8 -q >/tmp/said"
    );
    [
        "echo 1 >/proc/sys/vm/overcommit_memory",
        "redis-server --port 0 --unixsocket /tmp/redis --save '' --dir /io --enable-debug-command yes >/tmp/log & server=$!",
        "cli() { redis-cli -s /tmp/redis $*; }",
        "until cli ping >/tmp/said 2>&1; do usleep 10000; done",
        "stamp start",
        "cli --pipe </io/fill >/tmp/said",
        "stamp fill",
        &get,
        "stamp get",
        "cli bgsave >/tmp/said",
        "cli --pipe </io/update >/tmp/said",
        &get,
        // The file has this name when it is whole. A command each time would cost memory, so it asks seldom.
        "at=0; until [ -e /io/dump.rdb ]; do usleep 100000; at=$((at+1)); \
         [ $((at%50)) -ne 0 ] || cli info persistence | grep -q bgsave_in_progress:1 || break; done",
        "stamp save",
        "cli info persistence | grep -q bgsave_status:ok; echo work status $?",
        "echo work holds $(cli dbsize)",
        "echo work holds $(cli debug digest)",
        "cli shutdown nosave; wait $server",
    ]
    .join("; ")
}

/// The file of the background save is whole: the package's own check says so, run on the host with the libraries it was
/// built for.
fn check_dump(programs: &Path, dump: &Path) -> Result<()> {
    let output = Command::new(programs.join("lib64/ld-linux-x86-64.so.2"))
        .arg("--library-path")
        .arg(library_path(programs))
        .arg(programs.join("usr/bin/redis-check-rdb"))
        .arg(dump)
        .stdin(Stdio::null())
        .output()
        .context("cannot run redis-check-rdb")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && said.contains("RDB looks OK"),
        "the background save is not whole: {said}"
    );
    Ok(())
}

fn library_path(programs: &Path) -> String {
    ["usr/lib", "lib"]
        .map(|folder| {
            programs
                .join(folder)
                .join("x86_64-linux-gnu")
                .display()
                .to_string()
        })
        .join(":")
}

/// Where a program swaps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Swap {
    /// Nowhere: it has room.
    None,
    Tmem,
    Zram,
}

/// What one run took.
pub(crate) struct Run {
    /// MiB of the guest.
    pub(crate) memory: u32,
    /// Seconds of each part.
    pub(crate) parts: Vec<f64>,
    /// MiB that the store held at its most.
    pub(crate) held: f64,
    /// MiB of the guest that were in use at the most, if there was room.
    used: f64,
    /// Pages that the kernel brought back, and that it took: to a disk, or to frontswap.
    pub(crate) pages_in: f64,
    pub(crate) pages_out: f64,
}

impl Run {
    /// Seconds of all parts.
    pub(crate) fn seconds(&self) -> f64 {
        self.parts.iter().sum()
    }
}

/// What a program took, in rounds.
pub(crate) struct Worked {
    pub(crate) program: &'static Program,
    /// MiB.
    pub(crate) need: f64,
    /// With room.
    pub(crate) roomy: Run,
    /// On tmem, then on zram, at equal memory.
    pub(crate) rounds: Vec<(Run, Run)>,
}

impl Worked {
    /// Time with tmem over that with zram, the median of the rounds.
    pub(crate) fn ratio(&self) -> f64 {
        middle(&self.rounds, |(tmem, zram)| tmem.seconds() / zram.seconds())
    }
}

/// Runs the programs whose names are wanted, the guest on the first of two processors.
pub(crate) fn run(
    scale: &Scale,
    processors: [usize; 2],
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<Worked>> {
    let link = paths::target().join("images/programs");
    let programs = &link.canonicalize().with_context(|| {
        let link = link.display();
        format!("{link} is missing: run `cargo xtask image --uml --programs` first")
    })?;
    PROGRAMS
        .iter()
        .filter(|program| wanted(program.name))
        .map(|program| {
            let bench = Bench {
                program,
                programs,
                scale,
                processors,
                folder: folder()?,
            };
            bench
                .rounds()
                .with_context(|| format!("the work of {}", program.name))
        })
        .collect()
}

/// Files that guest and host share: in memory where that can be, so that the host's disk has no part in the times.
fn folder() -> Result<tempfile::TempDir> {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .context("cannot make a temporary folder")
}

struct Bench<'a> {
    program: &'static Program,
    programs: &'a Path,
    scale: &'a Scale,
    processors: [usize; 2],
    folder: tempfile::TempDir,
}

impl Bench<'_> {
    fn rounds(&self) -> Result<Worked> {
        let Program { name, prepare, .. } = *self.program;
        prepare(self.folder.path(), self.scale)?;
        let (roomy, expected) = self.once(Swap::None, AMPLE)?;
        let need = roomy.used;
        ensure!(
            need + 32.0 < f64::from(AMPLE),
            "{name} needs {need:.0} MiB: more than the {AMPLE} MiB in which that is measured have room for"
        );
        say(&format!(
            "work {name}: needs {need:.0} MiB, takes {:.1} s with room",
            roomy.seconds()
        ));
        let memory = (need / 3.0).ceil() as u32;
        let rounds = (0..self.scale.rounds)
            .map(|round| {
                let once = |swap, memory| -> Result<Run> {
                    let (run, result) = self.once(swap, memory)?;
                    ensure!(result == expected, "the result is another one than with room");
                    Ok(run)
                };
                let tmem = once(Swap::Tmem, memory)?;
                let zram = once(Swap::Zram, memory + tmem.held.ceil() as u32)?;
                say(&format!(
                    "work {name}: round {} of {}, tmem {:.1} s in {memory} + {:.0} MiB, zram {:.1} s in {} MiB",
                    round + 1,
                    self.scale.rounds,
                    tmem.seconds(),
                    tmem.held,
                    zram.seconds(),
                    zram.memory
                ));
                Ok((tmem, zram))
            })
            .collect::<Result<_>>()?;
        Ok(Worked {
            program: self.program,
            need,
            roomy,
            rounds,
        })
    }

    /// One run in a guest of its own, and the result.
    fn once(&self, swap: Swap, memory: u32) -> Result<(Run, Vec<u8>)> {
        let [first, second] = self.processors;
        for made in ["output.s", "dump.rdb"] {
            // It is there from the run before, or not.
            let _ = fs::remove_file(self.folder.path().join(made));
        }
        let service = on(second, || Service::start("2G", &[("vm1", ",swap=1G")]))?;
        let memory_word = format!("{memory}M");
        let commands = self.commands(swap);
        let setup = Setup {
            memory: &memory_word,
            words: match swap {
                Swap::Tmem => "tmem=1 test.page_cluster=3",
                Swap::Zram | Swap::None => "test.page_cluster=3",
            },
            disk: None,
            commands: &commands,
        };
        let guest = on(first, || {
            Guest::start(&service.socket("vm1"), service.folder(), &setup)
        })?;
        let (console, held) = most_held(&service, second, || guest.finish())?;
        let name = self.program.name;
        let run = self
            .read(&console, memory, held)
            .and_then(|run| {
                let result = (self.program.result)(self.programs, self.folder.path(), &console)?;
                Ok((run, result))
            })
            .with_context(|| {
                let lines = console.lines().join("\n");
                format!("{name} in a guest of {memory} MiB; the console:\n{lines}")
            })?;
        Ok(run)
    }

    /// What the guest does.
    fn commands(&self, swap: Swap) -> String {
        let mount = |from: &Path, to: &str, options: &str| {
            format!("mount -t hostfs {options} -o {} none {to}", from.display())
        };
        let swap_on = match swap {
            // The shell takes no `;` behind `&`.
            Swap::None => "low & true",
            Swap::Tmem => "swap_on tmemswap0",
            Swap::Zram => &format!("zram_on {SWAP}"),
        };
        [
            "mkdir /programs /io",
            &mount(self.programs, "/programs", "-r"),
            &mount(self.folder.path(), "/io", ""),
            "ln -s /programs/usr /programs/lib /programs/lib64 /; PATH=/bin:/usr/bin",
            "stamp() { echo work stamp $1 $(cut -d' ' -f1 /proc/uptime); }",
            "available() { awk '/MemAvailable/ {print $2}' /proc/meminfo; }",
            "low() { least=$(available); while usleep 50000; do now=$(available); \
             [ $now -ge $least ] || { least=$now; echo $least >/tmp/low; }; done; }",
            // The host gives the guest its memory page by page, when the guest first writes to it: not while it is timed.
            "mount -o remount,size=1G /tmp; \
             dd if=/dev/zero of=/tmp/touched bs=1M count=$(awk '/MemFree/ {print int($2/1024)-8}' /proc/meminfo) 2>/dev/null; \
             rm /tmp/touched",
            swap_on,
            "stamp begin",
            &(self.program.commands)(self.scale),
            "dmesg | grep -i 'out of memory'; counters end; [ ! -f /tmp/low ] || echo work low $(cat /tmp/low)",
            "splats",
            END,
        ]
        .join("; ")
    }

    fn read(&self, console: &Console, memory: u32, held: f64) -> Result<Run> {
        let lines = console.lines();
        let said = |what: &str| lines.iter().any(|line| line == what);
        ensure!(said("work status 0"), "the work was not done");
        ensure!(said("guest splats 0"), "the guest's kernel wrote warnings");
        let stamp = |name: &str| -> Result<f64> {
            let prefix = format!("work stamp {name} ");
            let line = lines.iter().find_map(|line| line.strip_prefix(&prefix));
            Ok(line.with_context(|| format!("no {prefix:?}"))?.parse()?)
        };
        let mut before = stamp("begin")?;
        let mut parts = Vec::new();
        for part in self.program.parts {
            let now = stamp(part)?;
            parts.push(now - before);
            before = now;
        }
        let low = lines.iter().find_map(|line| line.strip_prefix("work low "));
        let used = match low {
            Some(low) => f64::from(memory) - low.parse::<f64>()? / 1024.0,
            None => 0.0,
        };
        let both = |disk: &str, frontswap: &str| -> Result<f64> {
            Ok((console.counter("end", disk)? + console.counter("end", frontswap)?) as f64)
        };
        Ok(Run {
            memory,
            parts,
            held,
            used,
            pages_in: both("vmstat.pswpin", "frontswap.loads")?,
            pages_out: both("vmstat.pswpout", "frontswap.succ_stores")?,
        })
    }
}

/// Runs `work`, and returns how many MiB the store of the service held at its most meanwhile.
fn most_held(
    service: &Service,
    processor: usize,
    work: impl FnOnce() -> Result<Console>,
) -> Result<(Console, f64)> {
    let tmem = paths::binary("tmem")?;
    let control = service.folder().join("control");
    let done = AtomicBool::new(false);
    let look = || -> Result<u64> {
        let mut command = Command::new(&tmem);
        command.args(["stats", "--json", "--control"]).arg(&control);
        command.stdin(Stdio::null());
        Ok(stats_of(command)?.get("/bytes_used"))
    };
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            on(processor, || {
                let mut most = 0;
                while !done.load(Ordering::Relaxed) {
                    most = look()?.max(most);
                    thread::sleep(GLANCE);
                }
                Ok(most)
            })
        });
        let console = work();
        done.store(true, Ordering::Relaxed);
        let most = watch.join().expect("no panic")?;
        Ok((console?, most as f64 / f64::from(1 << 20)))
    })
}
