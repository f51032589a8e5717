//! Manifests and the files in them: sizes, counts, sequence numbers, and what Parquet footers say.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use iceberg::spec::{
    DataContentType, DataFile, DataFileFormat, FormatVersion, ManifestEntry, ManifestFile,
    ManifestStatus, Schema,
};
use parquet::{
    basic::{LogicalType, TimeUnit},
    file::{
        metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData},
        statistics::Statistics,
    },
};

use super::{
    super::{
        bounds::Bounds,
        held,
        live::LiveFiles,
        manifests::{Parsed, manifests_of},
    },
    Check,
};

impl Check<'_> {
    /// All snapshots, each manifest and file once. Answers the current snapshot's manifests.
    pub(super) async fn snapshots(&mut self) -> Option<Vec<ManifestFile>> {
        let metadata = self.metadata;
        let mut seen: HashSet<String> = HashSet::new();
        let mut current = None;
        let mut snapshots: Vec<_> = metadata.snapshots().cloned().collect();
        snapshots.sort_by_key(|s| std::cmp::Reverse((s.sequence_number(), s.snapshot_id())));
        for snapshot in snapshots {
            let list = snapshot.manifest_list();
            if self.size(list).await.is_none() {
                continue;
            }
            let manifests = match manifests_of(&self.handle.access, metadata, list).await {
                Ok(manifests) => manifests,
                Err(error) => {
                    self.tell("manifest", error);
                    continue;
                }
            };
            for manifest in &manifests {
                if seen.insert(manifest.manifest_path.clone()) {
                    self.manifest(manifest).await;
                }
                if manifest.sequence_number > snapshot.sequence_number() {
                    self.tell(
                        "sequence",
                        format!(
                            "a manifest is younger than its snapshot: file={} snapshot={}",
                            manifest.manifest_path,
                            snapshot.snapshot_id()
                        ),
                    );
                }
            }
            if metadata.current_snapshot_id() == Some(snapshot.snapshot_id()) {
                current = Some(manifests);
            }
        }
        current
    }

    async fn manifest(&mut self, manifest: &ManifestFile) {
        let path = &manifest.manifest_path;
        let Some(bytes) = self.size(path).await else {
            return;
        };
        if bytes != manifest.manifest_length.unsigned_abs() {
            self.tell(
                "manifest",
                format!(
                    "a manifest has another size: file={path} bytes={bytes} listed={}",
                    manifest.manifest_length
                ),
            );
        }
        let Some(parsed) = self.parsed(manifest).await else {
            return;
        };
        let mut counts: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for entry in &parsed.entries {
            let name = match entry.status() {
                ManifestStatus::Added => "added",
                ManifestStatus::Existing => "existing",
                ManifestStatus::Deleted => "deleted",
            };
            let count = counts.entry(name).or_default();
            count.0 += 1;
            count.1 += entry.record_count();
        }
        for (name, files, rows) in [
            (
                "added",
                manifest.added_files_count,
                manifest.added_rows_count,
            ),
            (
                "existing",
                manifest.existing_files_count,
                manifest.existing_rows_count,
            ),
            (
                "deleted",
                manifest.deleted_files_count,
                manifest.deleted_rows_count,
            ),
        ] {
            let is = counts.get(name).copied().unwrap_or_default();
            if files.is_some_and(|n| u64::from(n) != is.0) || rows.is_some_and(|n| n != is.1) {
                self.tell(
                    "manifest",
                    format!("a manifest has other counts than listed: file={path} of={name}"),
                );
            }
        }
        for entry in parsed.live() {
            self.sequence(manifest, entry);
            self.file(entry, &parsed).await;
        }
    }

    async fn parsed(&mut self, manifest: &ManifestFile) -> Option<Arc<Parsed>> {
        match self.handle.parsed(manifest).await {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                self.tell("manifest", error);
                None
            }
        }
    }

    fn sequence(&mut self, manifest: &ManifestFile, entry: &ManifestEntry) {
        let own = entry.sequence_number();
        let of_file = entry.file_sequence_number.or(own);
        let last = self.metadata.last_sequence_number();
        let sane = own.zip(of_file).is_some_and(|(own, of_file)| {
            0 <= own && own <= of_file && of_file <= last && manifest.min_sequence_number <= own
        });
        if !sane {
            self.tell(
                "sequence",
                format!(
                    "a file's sequence number is out of order: file={} manifest={}",
                    entry.file_path(),
                    manifest.manifest_path
                ),
            );
        }
    }

    async fn file(&mut self, entry: &ManifestEntry, parsed: &Parsed) {
        let file = entry.data_file();
        let path = file.file_path();
        let known = self.sizes.contains_key(path);
        let Some(bytes) = self.size(path).await else {
            return;
        };
        if bytes != file.file_size_in_bytes() {
            self.tell(
                "file",
                format!(
                    "a file has another size: file={path} bytes={bytes} listed={}",
                    file.file_size_in_bytes()
                ),
            );
        } else if !known && file.file_format() == DataFileFormat::Parquet {
            match self.handle.access.footer(path, bytes).await {
                Ok(footer) => {
                    for what in compare(file, &footer, &parsed.metadata.schema) {
                        self.tell("metrics", format!("{what}: file={path}"));
                    }
                }
                Err(error) => {
                    self.tell("file", format!("not a Parquet file: file={path}: {error}"));
                }
            }
        }
    }

    /// What the current snapshot's summary says in all.
    pub(super) async fn totals(&mut self, manifests: &[ManifestFile]) {
        let mut totals: BTreeMap<&str, u64> = BTreeMap::new();
        for manifest in manifests {
            let Some(parsed) = self.parsed(manifest).await else {
                return;
            };
            for entry in parsed.live() {
                let file = entry.data_file();
                let rows = file.record_count();
                let vector = file.content_offset().and(file.content_size_in_bytes());
                let bytes = vector.map_or(file.file_size_in_bytes(), i64::unsigned_abs);
                *totals.entry("total-files-size").or_default() += bytes;
                let (files, of) = match file.content_type() {
                    DataContentType::Data => ("total-data-files", "total-records"),
                    DataContentType::PositionDeletes => {
                        ("total-delete-files", "total-position-deletes")
                    }
                    DataContentType::EqualityDeletes => {
                        ("total-delete-files", "total-equality-deletes")
                    }
                };
                *totals.entry(files).or_default() += 1;
                *totals.entry(of).or_default() += rows;
            }
        }
        let Some(snapshot) = self.metadata.current_snapshot() else {
            return;
        };
        for name in [
            "total-data-files",
            "total-records",
            "total-files-size",
            "total-delete-files",
            "total-position-deletes",
            "total-equality-deletes",
        ] {
            let is = totals.get(name).copied().unwrap_or(0);
            let said = held::summary(snapshot, name);
            if said.is_some_and(|said| said.parse() != Ok(is)) {
                self.tell(
                    "summary",
                    format!(
                        "the summary has another total: {name}={} counted={is}",
                        said.unwrap_or_default()
                    ),
                );
            }
        }
    }

    /// That no two rows have one id.
    pub(super) fn row_ids(&mut self, live: &LiveFiles) {
        if self.metadata.format_version() != FormatVersion::V3 {
            return;
        }
        let mut ranges: Vec<(i64, u64, &str)> = live
            .files()
            .filter_map(|file| Some((file.first_row_id?, file.rows, &*file.path)))
            .collect();
        ranges.sort_unstable();
        let mut next = 0;
        for (first, rows, path) in ranges {
            if first < next {
                self.tell("sequence", format!("row ids come twice: file={path}"));
            }
            next = next.max(first + rows as i64);
        }
        if next > self.metadata.next_row_id() as i64 {
            self.tell(
                "sequence",
                format!(
                    "row ids beyond the table's next: next_row_id={} used={next}",
                    self.metadata.next_row_id()
                ),
            );
        }
    }
}

/// Where a manifest's entry and a footer disagree.
fn compare(file: &DataFile, footer: &ParquetMetaData, schema: &Schema) -> Vec<String> {
    let mut found = Vec::new();
    let rows: i64 = footer
        .row_groups()
        .iter()
        .map(RowGroupMetaData::num_rows)
        .sum();
    if rows.unsigned_abs() != file.record_count() {
        found.push(format!(
            "a file has another number of rows, rows={rows} listed={}",
            file.record_count()
        ));
    }
    for (at, column) in footer
        .file_metadata()
        .schema_descr()
        .columns()
        .iter()
        .enumerate()
    {
        let info = column.self_type().get_basic_info();
        let plain = info.has_id() && column.max_rep_level() == 0;
        let field = schema.field_by_id(if plain { info.id() } else { -1 });
        let Some(primitive) = field.and_then(|f| f.field_type.as_primitive_type()) else {
            continue;
        };
        let id = info.id();
        let chunks = || footer.row_groups().iter().map(|group| group.column(at));
        let values: i64 = chunks().map(ColumnChunkMetaData::num_values).sum();
        let nulls: Option<u64> = chunks()
            .map(|chunk| chunk.statistics().and_then(Statistics::null_count_opt))
            .sum();
        let listed = file.value_counts().get(&id);
        if listed.is_some_and(|n| *n != values.unsigned_abs()) {
            found.push(format!("another number of values, column={}", info.name()));
        }
        let listed = file.null_value_counts().get(&id);
        if listed.zip(nulls).is_some_and(|(listed, is)| *listed != is) {
            found.push(format!("another number of nulls, column={}", info.name()));
        }
        // Times in another unit than Iceberg's cannot be compared byte by byte.
        let micros = |unit: &TimeUnit| matches!(unit, TimeUnit::MICROS);
        let comparable = match column.logical_type_ref() {
            Some(LogicalType::Timestamp { unit, .. } | LogicalType::Time { unit, .. }) => {
                micros(unit)
            }
            _ => true,
        };
        if !comparable {
            continue;
        }
        let mut bounds = Bounds::of(primitive);
        for chunk in chunks() {
            bounds.add(chunk.statistics(), chunk.num_values().unsigned_abs());
        }
        let (lower, upper) = (file.lower_bounds().get(&id), file.upper_bounds().get(&id));
        if !bounds.within(lower, upper) {
            found.push(format!("values beyond the bounds, column={}", info.name()));
        }
    }
    found
}
