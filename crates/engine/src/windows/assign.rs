//! What a batcher does with windows: which rows of a batch belong to which window, rows of a window
//! side by side; or, where there is an aggregate, the partial states of each window.

use std::{ops::Range, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch, TimestampMicrosecondArray, UInt32Array},
    compute::take_record_batch,
    datatypes::{DataType, Field, Schema, TimeUnit},
};
use calve_model::{
    Micros,
    windows::{Window, Windowing},
};
use rustc_hash::FxHashMap;

use super::{Key, WINDOW_END, WINDOW_START, Windowed, arrow_failed, key::Keys, micros_at};
use crate::{
    error::{Error, Result},
    seams::Aggregate,
};

/// Rows of one key and window in a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) key: Key,
    pub(crate) window: Window,
    /// Where its rows (or states) are.
    pub(crate) at: Range<usize>,
    /// How many elements they stand for.
    pub(crate) elements: u64,
    pub(crate) bytes: u64,
}

/// A batch of rows, or of partial states, grouped by key and window.
#[derive(Debug)]
pub(crate) struct Assigned {
    /// Each row belongs to one group.
    pub(crate) content: RecordBatch,
    pub(crate) groups: Vec<Group>,
    /// Where there is an aggregate: the rows that states were made of, with the number of each row's
    /// group. Late ones are needed as they came.
    pub(crate) rows: Option<(RecordBatch, Vec<u32>)>,
}

/// Which rows belong to which key and window.
struct Places {
    groups: Vec<(Key, Window)>,
    elements: Vec<u64>,
    /// For each element, its group.
    ids: Vec<u32>,
    /// For each element, its row; none: element `i` is row `i`. A sliding window has a row in several.
    rows: Option<Vec<u32>>,
}

impl Places {
    fn new(rows: usize) -> Self {
        Self {
            groups: Vec::new(),
            elements: Vec::new(),
            ids: Vec::with_capacity(rows),
            rows: None,
        }
    }

    fn group(&mut self, key: Key, window: Window) -> u32 {
        self.groups.push((key, window));
        self.elements.push(0);
        self.groups.len() as u32 - 1
    }

    fn put(&mut self, id: u32) {
        self.ids.push(id);
        self.elements[id as usize] += 1;
    }
}

impl Windowed {
    /// Groups rows.
    ///
    /// # Errors
    /// `Data` where a row has no event time, or does not fit the aggregate.
    pub(crate) fn assign(&self, rows: RecordBatch) -> Result<Assigned> {
        let times = match &self.time {
            Some(time) => time.micros(&rows)?,
            None => vec![0; rows.num_rows()],
        };
        let keys = Keys::of(&rows, &self.key)?;
        let windowing = &self.strategy.windowing;
        let places = if let Windowing::Session { gap } = windowing {
            sessions(&times, &keys, *gap)
        } else {
            each(&times, &keys, windowing)
        };
        let bytes = rows.get_array_memory_size() as u64;
        let each = bytes / (rows.num_rows() as u64).max(1);
        match &self.aggregate {
            None => by_group(rows, &places, each),
            Some(aggregate) => self.states(aggregate.as_ref(), rows, places, each),
        }
    }

    fn states(
        &self,
        aggregate: &dyn Aggregate,
        rows: RecordBatch,
        places: Places,
        each: u64,
    ) -> Result<Assigned> {
        let rows = match &places.rows {
            Some(order) => take_rows(&rows, order.clone())?,
            None => rows,
        };
        let bound = |of: fn(&Window) -> Micros| -> ArrayRef {
            let ids = places.ids.iter();
            let values = ids.map(|id| of(&places.groups[*id as usize].1));
            Arc::new(TimestampMicrosecondArray::from_iter_values(values))
        };
        let (starts, ends) = (bound(|w| w.start), bound(|w| w.end));
        let input = with_columns(&rows, [(WINDOW_START, starts), (WINDOW_END, ends)])?;
        let states = aggregate.partial(&input)?;
        let elements: FxHashMap<_, _> = places.groups.iter().zip(&places.elements).collect();
        let mut assigned = by_window(states, aggregate, &self.key_in_states)?;
        // Groups are numbered as in the states, rows as they came: they must mean the same.
        let mut number = FxHashMap::default();
        for (index, group) in assigned.groups.iter_mut().enumerate() {
            let of = (group.key.clone(), group.window);
            let count = elements.get(&of).copied().copied();
            group.elements =
                count.ok_or_else(|| Error::internal("a state of a window that no row is in"))?;
            group.bytes = group.elements * each;
            number.insert(of, index as u32);
        }
        let numbers: Vec<u32> = places
            .groups
            .iter()
            .map(|of| number.get(of).copied().unwrap_or(u32::MAX))
            .collect();
        let ids = places.ids.iter().map(|id| numbers[*id as usize]).collect();
        assigned.rows = Some((rows, ids));
        Ok(assigned)
    }
}

/// Windows that do not depend on other rows.
fn each(times: &[Micros], keys: &Keys, windowing: &Windowing) -> Places {
    let mut places = Places::new(times.len());
    let mut known: FxHashMap<(u32, Window), u32> = FxHashMap::default();
    let mut windows = Vec::new();
    let mut last: Option<(u32, Window, u32)> = None;
    let several = matches!(windowing, Windowing::Sliding { .. });
    let mut order = Vec::new();
    for (row, at) in times.iter().enumerate() {
        let key = keys.id(row);
        if let Some((of, window, id)) = last
            && !several
            && of == key
            && window.start <= *at
            && *at < window.end
        {
            places.put(id);
            continue;
        }
        windows.clear();
        windowing.assign(*at, &mut windows);
        for window in &windows {
            let id = *known
                .entry((key, *window))
                .or_insert_with(|| places.group(keys.distinct[key as usize].clone(), *window));
            places.put(id);
            order.push(row as u32);
            last = Some((key, *window, id));
        }
    }
    if several {
        places.rows = Some(order);
    }
    places
}

/// Rows of a key that are nearer than `gap` to each other are in one session.
fn sessions(times: &[Micros], keys: &Keys, gap: Micros) -> Places {
    let mut places = Places::new(times.len());
    places.ids.resize(times.len(), 0);
    let mut rows: Vec<u32> = (0..times.len() as u32).collect();
    let at = |row: u32| (keys.id(row as usize), times[row as usize]);
    if !rows.is_sorted_by_key(|row| at(*row)) {
        rows.sort_by_key(|row| at(*row));
    }
    let mut open: Option<(u32, Window, u32)> = None;
    for row in rows {
        let (key, time) = at(row);
        let end = time.saturating_add(gap);
        let id = match &mut open {
            Some((of, window, id)) if *of == key && time < window.end => {
                window.end = end;
                places.groups[*id as usize].1 = *window;
                *id
            }
            _ => {
                let window = Window { start: time, end };
                let id = places.group(keys.distinct[key as usize].clone(), window);
                open = Some((key, window, id));
                id
            }
        };
        places.ids[row as usize] = id;
        places.elements[id as usize] += 1;
    }
    places
}

/// Rows of a group side by side, groups in the order of their first row.
fn by_group(rows: RecordBatch, places: &Places, each: u64) -> Result<Assigned> {
    let mut at = 0;
    let groups: Vec<Group> = places
        .groups
        .iter()
        .zip(&places.elements)
        .map(|((key, window), elements)| {
            let from = at;
            at += *elements as usize;
            Group {
                key: key.clone(),
                window: *window,
                at: from..at,
                elements: *elements,
                bytes: elements * each,
            }
        })
        .collect();
    let content = match (&places.rows, places.ids.is_sorted()) {
        (None, true) => rows,
        (order, _) => {
            let mut to: Vec<usize> = groups.iter().map(|group| group.at.start).collect();
            let mut sorted = vec![0u32; places.ids.len()];
            for (element, id) in places.ids.iter().enumerate() {
                let slot = &mut to[*id as usize];
                sorted[*slot] = order.as_ref().map_or(element as u32, |rows| rows[element]);
                *slot += 1;
            }
            take_rows(&rows, sorted)?
        }
    };
    Ok(Assigned {
        content,
        groups,
        rows: None,
    })
}

/// Groups partial states by the key and window that they carry; `elements` and `bytes` are zero.
pub(crate) fn by_window(
    states: RecordBatch,
    aggregate: &dyn Aggregate,
    key: &[usize],
) -> Result<Assigned> {
    let (start, end) = aggregate.window_columns();
    let keys = Keys::of(&states, key)?;
    let (starts, ends) = (micros_at(&states, start)?, micros_at(&states, end)?);
    let mut places = Places::new(states.num_rows());
    let mut known: FxHashMap<(u32, Window), u32> = FxHashMap::default();
    for row in 0..states.num_rows() {
        let window = Window {
            start: starts.value(row),
            end: ends.value(row),
        };
        let key = keys.id(row);
        let id = *known
            .entry((key, window))
            .or_insert_with(|| places.group(keys.distinct[key as usize].clone(), window));
        places.put(id);
    }
    let mut assigned = by_group(states, &places, 0)?;
    for group in &mut assigned.groups {
        group.elements = 0;
    }
    Ok(assigned)
}

fn take_rows(rows: &RecordBatch, order: Vec<u32>) -> Result<RecordBatch> {
    take_record_batch(rows, &UInt32Array::from(order)).map_err(arrow_failed)
}

/// The batch with more timestamp columns behind its own.
fn with_columns<const N: usize>(
    rows: &RecordBatch,
    more: [(&str, ArrayRef); N],
) -> Result<RecordBatch> {
    let mut fields: Vec<Arc<Field>> = rows.schema().fields().iter().cloned().collect();
    let mut columns = rows.columns().to_vec();
    for (name, column) in more {
        let of = DataType::Timestamp(TimeUnit::Microsecond, None);
        fields.push(Arc::new(Field::new(name, of, false)));
        columns.push(column);
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(arrow_failed)
}

#[cfg(test)]
#[path = "assign_tests.rs"]
mod tests;
