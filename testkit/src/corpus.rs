//! Pages of real processes (a Python heap full of parsed JSON, a compiler's heap, an ELF file), and pages from a seed.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{PAGE_SIZE, Page};

/// Where pages came from, and how many.
pub struct Source {
    pub name: &'static str,
    pub pages: Vec<Page>,
    /// Pages that repeat a word and were left out: no codec runs on them.
    pub filled: usize,
}

/// Up to `each` pages of every source that this machine has.
pub fn sources(each: usize) -> Vec<Source> {
    let mut sources = Vec::new();
    for (name, pages) in [
        ("python heap of parsed JSON", python(each)),
        ("compiler heap (cc1)", compiler(each)),
        ("ELF file", elf(each)),
    ] {
        match pages {
            Ok(pages) => {
                let before = pages.len();
                let pages: Vec<_> = pages
                    .into_iter()
                    .filter(|page| page.chunks(8).any(|word| word != &page[..8]))
                    .collect();
                let filled = before - pages.len();
                sources.push(Source {
                    name,
                    pages,
                    filled,
                });
            }
            Err(error) => println!("{name}: left out ({error})"),
        }
    }
    assert!(!sources.is_empty(), "no source of pages");
    sources
}

/// Says where pages came from.
pub fn print(sources: &[Source]) {
    println!("pages: without those that repeat one word");
    for source in sources {
        println!(
            "  {:28} {:7} pages, {:6} more repeat a word",
            source.name,
            source.pages.len(),
            source.filled
        );
    }
}

/// All pages, the sources taking turns.
pub fn mixed(sources: &[Source]) -> Vec<Page> {
    let longest = sources.iter().map(|s| s.pages.len()).max().unwrap_or(0);
    let mut mix = Vec::new();
    for at in (0..longest).step_by(8) {
        for source in sources {
            mix.extend(source.pages.iter().skip(at).take(8));
        }
    }
    mix
}

/// Ends a process that pages are read from.
struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn python(most: usize) -> std::io::Result<Vec<Page>> {
    let script = "
import json, random, sys
random.seed(7)
words = [''.join(random.choice('abcdefghijklmnopqrstuvwxyz') for _ in range(random.randint(3, 12))) for _ in range(5000)]
def record(i):
    return {'id': i, 'name': ' '.join(random.choices(words, k=3)), 'tags': random.choices(words, k=5),
            'score': random.random(), 'address': {'street': random.choice(words), 'number': random.randint(1, 999)},
            'text': ' '.join(random.choices(words, k=20))}
kept = [json.loads(json.dumps([record(i) for i in range(1000)])) for _ in range(int(sys.argv[1]))]
print('ready', flush=True)
sys.stdin.read()
";
    let blocks = (most / 500).clamp(4, 400).to_string();
    let mut child = Victim(
        Command::new("python3")
            .args(["-c", script, &blocks])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?,
    );
    let stdout = child.0.stdout.take().expect("piped");
    BufReader::new(stdout).read_line(&mut String::new())?;
    heap(child.0.id(), most)
}

fn compiler(most: usize) -> std::io::Result<Vec<Page>> {
    let cc1 = Command::new("gcc").arg("-print-prog-name=cc1").output()?;
    let cc1 = String::from_utf8_lossy(&cc1.stdout).trim().to_owned();
    let mut source = String::new();
    for i in 0..most / 2 {
        source.push_str(&format!(
            "struct node_{i} {{ struct node_{i} *next; int key_{i}; char name[{}]; }};\n\
             extern int visit_{i}(struct node_{i} *n, int depth);\n\
             enum kind_{i} {{ KIND_A_{i} = {i}, KIND_B_{i}, KIND_C_{i} }};\n\
             int walk_{i}(struct node_{i} *n, int limit) {{\n\
               int sum = {i};\n\
               for (int d = 0; n && d < limit; d++, n = n->next) {{\n\
                 if (n->key_{i} > sum) sum += visit_{i}(n, d); else sum ^= n->name[d % {}];\n\
               }}\n\
               return sum + KIND_B_{i};\n}}\n",
            i % 50 + 8,
            i % 50 + 8,
        ));
    }
    // The compiler waits for the rest of its input while its heap is read.
    source.push_str("#include \"/dev/stdin\"\n");
    let file = std::env::temp_dir().join(format!("tmem-bench-{}.c", std::process::id()));
    fs::write(&file, source)?;
    let mut child = Victim(
        Command::new(cc1)
            .args(["-quiet", "-O2", "-o", "/dev/null"])
            .arg(&file)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?,
    );
    let stdin = child.0.stdin.take();
    let deadline = Instant::now() + Duration::from_secs(20);
    let (mut last, mut same) = (0, 0);
    while same < 5 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
        let now = cpu_ticks(child.0.id());
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    let pages = heap(child.0.id(), most);
    drop(stdin);
    fs::remove_file(file)?;
    pages
}

fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ")
        .next()
        .and_then(|rest| rest.split(' ').nth(11)?.parse().ok())
        .unwrap_or(0)
}

fn elf(most: usize) -> std::io::Result<Vec<Page>> {
    let mut best = fs::canonicalize("/proc/self/exe")?;
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output();
    if let Ok(sysroot) = sysroot {
        let lib = format!("{}/lib", String::from_utf8_lossy(&sysroot.stdout).trim());
        for file in fs::read_dir(lib)?.flatten() {
            if file.file_name().to_string_lossy().contains("rustc_driver") {
                best = file.path();
            }
        }
    }
    let size = usize::try_from(fs::metadata(&best)?.len()).expect("fits") / PAGE_SIZE;
    let stride = (size / most).max(1);
    let mut file = File::open(best)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let (pages, _) = bytes.as_chunks::<PAGE_SIZE>();
    // Runs of eight, as readahead would bring them.
    Ok(pages
        .chunks(8)
        .step_by(stride)
        .flatten()
        .copied()
        .take(most)
        .collect())
}

/// Pages of a process' writable private memory.
fn heap(pid: u32, most: usize) -> std::io::Result<Vec<Page>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut pages = Vec::new();
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (Some(range), Some(rights)) = (fields.next(), fields.next()) else {
            continue;
        };
        let path = fields.nth(3).unwrap_or("");
        if !rights.starts_with("rw-p") || !(path.is_empty() || path == "[heap]") {
            continue;
        }
        let Some((start, end)) = range.split_once('-') else {
            continue;
        };
        let (Ok(start), Ok(end)) = (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16))
        else {
            continue;
        };
        for at in (start..end).step_by(PAGE_SIZE) {
            let mut page = [0; PAGE_SIZE];
            if memory.read_exact_at(&mut page, at).is_ok() {
                pages.push(page);
            }
        }
    }
    // Evenly from the whole heap, in runs of eight.
    let stride = (pages.len() / most).max(1);
    Ok(pages
        .chunks(8)
        .step_by(stride)
        .flatten()
        .copied()
        .take(most)
        .collect())
}

/// A page that does not compress, told apart by its seed.
pub fn page(seed: u64) -> Page {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut page = [0u8; PAGE_SIZE];
    for word in page.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    page
}

/// A page whose first `entropy` bytes do not compress, told apart by its seed; the others are zero.
pub fn compressible(seed: u64, entropy: usize) -> Page {
    let mut page = [0; PAGE_SIZE];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for byte in page.iter_mut().take(entropy) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = (state >> 32) as u8;
    }
    page
}
