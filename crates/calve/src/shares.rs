//! One memory budget for a pipeline, and what each of its parts may take of it. A part that reaches its
//! share frees it by itself: the reader stops, the largest open file is flushed, rows of windows lie in
//! runs alone, lookups of keys go to the disk. docs/operating.md has the table.

use std::{fs, path::Path, sync::OnceLock};

use crate::config::PipelineFile;

const MIB: u64 = 1 << 20;
/// Where nobody says how much memory the machine has.
const UNKNOWN: u64 = 4 << 30;
/// Below it there is no room for a batch and a data file.
pub(crate) const LEAST: u64 = 32 * MIB;

/// What the parts of a pipeline may hold, bytes. Together they are at most the budget (see the test);
/// what is left is for what they do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shares {
    /// All of it.
    pub(crate) budget: u64,
    /// Batches between reader and writer, as they were read and as rows.
    pub(crate) in_flight: u64,
    /// Rows that wait for their file, and open files; of each of the tables.
    pub(crate) files: u64,
    /// Rows of open windows; 0 without windows.
    pub(crate) windows: u64,
    /// Changes that wait for the end of their epoch; 0 where nothing is merged.
    pub(crate) changes: u64,
    /// The index of keys, where the file does not say; 0 where nothing is merged.
    pub(crate) index: u64,
    /// A compaction beside the pipeline; 0 without.
    pub(crate) compaction: u64,
    /// Each of the tables that events are joined with.
    pub(crate) lookup: u64,
    tables: u64,
}

impl Shares {
    /// Those of a pipeline.
    pub(crate) fn of(file: &PipelineFile) -> Self {
        let budget = file.limits.memory_bytes();
        let part = |has: bool, part: u64, least: u64, most: u64| {
            let share = (budget / part).clamp(least * MIB, most * MIB);
            if has { share } else { 0 }
        };
        let late = crate::windows::late_sink(file).is_some();
        let tables = if late { 2 } else { 1 };
        // Parts of an upload cannot be small, and wait in memory until they are full. On a disk more
        // would make row groups longer, and nothing faster.
        let (files, most_files) = if file.sink.is_remote() {
            (8, 256)
        } else {
            (16, 64)
        };
        let merges = file.sink.changes().is_some();
        Self {
            budget,
            in_flight: part(true, 8, 4, 128),
            files: part(true, files, 2, most_files) / tables,
            windows: part(file.window.is_some(), 4, 8, u64::MAX / MIB),
            changes: part(merges, 8, 4, u64::MAX / MIB),
            index: part(merges, 16, 2, 64),
            compaction: part(file.upkeep.is_some(), 16, 2, 256),
            lookup: budget / 8,
            tables,
        }
    }

    /// What batches, files and windows may hold together.
    pub(crate) fn levels(&self) -> u64 {
        self.in_flight + self.files * self.tables + self.windows
    }
}

/// A quarter of the memory that the machine has, or the cgroup that the process is in.
pub(crate) fn default_budget() -> u64 {
    static BUDGET: OnceLock<u64> = OnceLock::new();
    *BUDGET.get_or_init(|| {
        let read = |path: &Path| fs::read_to_string(path).ok();
        (available(read).unwrap_or(UNKNOWN) / 4).max(LEAST)
    })
}

/// What the process may use at the most: the machine's memory, or the least limit of the cgroups above it.
fn available(read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
    });
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().flat_map(|line| {
        let mut words = line.splitn(3, ':');
        let (_, of, path) = (words.next(), words.next(), words.next());
        let (root, file) = match of.unwrap_or_default() {
            "" => ("/sys/fs/cgroup", "memory.max"),
            of if of.split(',').any(|of| of == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return Vec::new(),
        };
        // In a container the path is the host's, and what is mounted begins further down.
        let path = Path::new(path.unwrap_or_default().trim_start_matches('/'));
        let above = path
            .ancestors()
            .map(|at| Path::new(root).join(at).join(file));
        let limits = above.filter_map(|at| read(&at)?.trim().parse::<u64>().ok());
        limits.collect::<Vec<_>>()
    });
    machine
        .into_iter()
        .chain(limits)
        .filter(|bytes| *bytes > 0)
        .min()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::config;

    fn seen(files: &[(&str, &str)]) -> Option<u64> {
        let files: HashMap<_, _> = files.iter().copied().collect();
        available(|path| files.get(path.to_str()?).map(|text| (*text).to_owned()))
    }

    #[test]
    fn the_least_limit_counts() {
        let machine = (
            "/proc/meminfo",
            "MemTotal:       24684004 kB\nMemFree: 1 kB\n",
        );
        assert_eq!(seen(&[]), None);
        assert_eq!(seen(&[machine]), Some(24_684_004 * 1024));
        let second = ("/proc/self/cgroup", "0::/user/one\n");
        let inner = ("/sys/fs/cgroup/user/one/memory.max", "max\n");
        let outer = ("/sys/fs/cgroup/user/memory.max", "536870912\n");
        assert_eq!(seen(&[machine, second, inner, outer]), Some(512 << 20));
        let first = ("/proc/self/cgroup", "9:cpu:/\n4:memory:/docker/abc\n0::/\n");
        let own = ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "268435456\n");
        assert_eq!(seen(&[machine, first, own]), Some(256 << 20));
        let none = (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "9223372036854771712\n",
        );
        assert_eq!(seen(&[machine, first, none]), Some(24_684_004 * 1024));
    }

    #[test]
    fn the_shares_are_at_most_the_budget() {
        let everything = "name: a\nsource: { stdin: {} }\nformat: { json: { columns: { ts: bigint, id: bigint } } }\n\
             event_time: { column: ts, unit: s }\nwindow: { fixed: 1h }\n\
             sink: { iceberg: { catalog: { sqlite: c.db, warehouse: s3://lake }, table: a.b } }\nupkeep: { compact_every: 1h }\n";
        let merged = "name: a\nsource: { stdin: {} }\nformat: { json: { columns: { op: varchar, id: bigint } } }\n\
             sink: { iceberg: { catalog: { sqlite: c.db, warehouse: s3://lake }, table: a.b, \
             changes: { key: [id], op_column: op } } }\nupkeep: { compact_every: 1h }\n";
        for text in [everything, merged] {
            for budget in ["32MiB", "64MiB", "256MiB", "1GiB", "100GiB"] {
                let text = format!("{text}limits: {{ memory: {budget} }}\n");
                let file = config::parse(&text, &|_| None).expect("a pipeline file");
                let shares = Shares::of(&file);
                let sum = shares.levels() + shares.changes + shares.index + shares.compaction;
                assert!(sum + shares.lookup <= shares.budget, "{budget}: {shares:?}");
            }
        }
    }
}
