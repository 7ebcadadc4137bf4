//! What the programs of `work` work on: a file of C, and records of a database. The same in every run.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Cases of a switch of the C file.
const CASES: u32 = 24;
/// Functions that share a table.
const SHARED: u32 = 4;

const WORDS: [&str; 16] = [
    "amber", "birch", "cedar", "delta", "ember", "frost", "grove", "haven", "inlet", "jolly",
    "karst", "lemon", "maple", "north", "ocean", "pearl",
];

/// Numbers that look random.
struct Numbers(u64);

impl Numbers {
    /// One below `bound`.
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32 % bound
    }

    fn word(&mut self) -> &'static str {
        WORDS[self.below(WORDS.len() as u32) as usize]
    }
}

/// A C file as generators of parsers and of interpreters write them: functions of one large switch each, and tables of
/// numbers.
pub(crate) fn c_file(path: &Path, functions: u32, table: u32) -> io::Result<()> {
    let mut numbers = Numbers(12_345);
    let mut out = BufWriter::new(File::create(path)?);
    writeln!(out, "typedef unsigned int u32;\ntypedef unsigned long u64;")?;
    writeln!(
        out,
        "struct node {{ struct node *next; u64 key; u32 kind, count; u64 data[4]; }};"
    )?;
    for function in 0..functions {
        let shared = function - function % SHARED;
        if function == shared {
            writeln!(out, "static const u32 table_{shared}[{table}] = {{")?;
            for _ in 0..table {
                writeln!(out, "{},", numbers.below(1 << 31))?;
            }
            writeln!(out, "}};")?;
        }
        writeln!(
            out,
            "u64 step_{function}(struct node *node, u64 value)\n{{\n\tu64 sum = value;\n\
             \tfor (u32 at = 0; node && at < node->count; at++, node = node->next)\n\
             \t\tswitch ((node->kind + at) % {CASES}) {{"
        )?;
        for case in 0..CASES {
            let entry = format!("table_{shared}[(sum >> {}) % {table}]", numbers.below(20));
            let [field, shift, number] = [4, 31, 1 << 30].map(|bound| numbers.below(bound));
            let action = match numbers.below(4) {
                0 => format!("sum += node->data[{field}] * {number}u ^ {entry};"),
                1 => format!(
                    "if (sum > node->key) {{ sum -= {entry}; node->data[{field}] = sum; }} else sum ^= node->key << {shift};"
                ),
                2 if function > 0 => format!(
                    "node->key = sum >> {shift} | {number}u; sum += step_{}(node->next, sum);",
                    numbers.below(function)
                ),
                _ => format!(
                    "for (u32 i = 0; i < {}; i++) node->data[i] += sum * {number}u + {entry};",
                    field.max(2)
                ),
            };
            writeln!(out, "\t\tcase {case}: {action} break;")?;
        }
        writeln!(out, "\t\t}}\n\treturn sum;\n}}")?;
    }
    out.flush()
}

/// Commands of Redis that set each `step`th of `keys` keys to a record of JSON, which `seed` chooses, as it reads them
/// from a pipe.
pub(crate) fn records(path: &Path, keys: u32, step: usize, seed: u64) -> io::Result<()> {
    let mut numbers = Numbers(seed);
    let mut out = BufWriter::new(File::create(path)?);
    for key in (0..keys).step_by(step) {
        let mut record = format!(
            "{{\"user\":\"{}-{}\",\"session\":\"{:08x}{:08x}{:08x}{:08x}\",\"items\":[",
            numbers.word(),
            numbers.below(1_000_000),
            numbers.below(1 << 31),
            numbers.below(1 << 31),
            numbers.below(1 << 31),
            numbers.below(1 << 31),
        );
        for item in 0..5 + numbers.below(8) {
            let comma = if item == 0 { "" } else { "," };
            record += &format!(
                "{comma}{{\"id\":{},\"name\":\"{} {}\",\"price\":{}.{:02},\"tags\":[\"{}\",\"{}\"],\"stock\":{}}}",
                numbers.below(1_000_000_000),
                numbers.word(),
                numbers.word(),
                numbers.below(1000),
                numbers.below(100),
                numbers.word(),
                numbers.word(),
                numbers.below(500),
            );
        }
        record += "]}";
        // The keys that its benchmark asks for.
        let key = format!("key:{key:012}");
        let (key_len, record_len) = (key.len(), record.len());
        write!(
            out,
            "*3\r\n$3\r\nSET\r\n${key_len}\r\n{key}\r\n${record_len}\r\n{record}\r\n"
        )?;
    }
    out.flush()
}
