//! Columns of few different words: the case of a oneof, the name of an enum's value.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, DictionaryArray, Int32Array, StringArray},
    compute::take,
    datatypes::Int32Type,
    error::ArrowError,
};
use prost_reflect::EnumDescriptor;
use rustc_hash::FxHashMap;

use super::fill::{Fill, Leaf, Validity, View, first, renew};

/// Which case of a oneof is set, as a word. Of several oneofs the first with a case counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Case {
    words: Vec<String>,
    oneofs: Vec<Oneof>,
    absent: Option<u32>,
}

/// The cell of a oneof, and the words of its cases by their number.
#[derive(Clone, Debug)]
struct Oneof {
    cell: u16,
    words: Vec<Option<u32>>,
}

impl Case {
    /// Adds a oneof: the cell of its case, and the words of cases from 1.
    pub(super) fn add(&mut self, cell: u16, words: Vec<Option<String>>) {
        let words = words.into_iter().map(|word| word.map(|w| self.word(w)));
        let words = words.collect();
        if self.oneofs.iter().all(|known| known.cell != cell) {
            self.oneofs.push(Oneof { cell, words });
        }
    }

    /// Sets the word where no case is set.
    pub(super) fn absent(&mut self, word: String) {
        self.absent = Some(self.word(word));
    }

    fn word(&mut self, word: String) -> u32 {
        let known = self.words.iter().position(|known| *known == word);
        known.unwrap_or_else(|| {
            self.words.push(word);
            self.words.len() - 1
        }) as u32
    }

    /// The word of a row, as its place among the words.
    #[inline]
    fn of(&self, row: &[u64]) -> Option<u32> {
        for oneof in &self.oneofs {
            let case = row[usize::from(oneof.cell)];
            if case != 0 {
                return oneof.words.get(case as usize - 1).copied().flatten();
            }
        }
        self.absent
    }

    /// The word of a row.
    #[inline]
    pub(super) fn label(&self, row: &[u64]) -> Option<&str> {
        Some(self.words[self.of(row)? as usize].as_str())
    }
}

/// The names of an enum's values.
struct Names {
    leaves: Vec<Leaf>,
    places: FxHashMap<i32, i32>,
    words: Vec<String>,
    /// How many of the names the enum has; behind them the numbers that it does not have.
    known: usize,
}

impl Names {
    fn new(leaves: Vec<Leaf>, of: &EnumDescriptor) -> Self {
        let mut names = Self {
            leaves,
            places: FxHashMap::default(),
            words: Vec::new(),
            known: 0,
        };
        for value in of.values() {
            // Of several names of a number the one counts that the descriptor finds.
            let name = of.get_value(value.number());
            let name = name.map_or_else(|| value.name().to_owned(), |v| v.name().to_owned());
            if !names.places.contains_key(&value.number()) {
                names
                    .places
                    .insert(value.number(), names.words.len() as i32);
                names.words.push(name);
            }
        }
        names.known = names.words.len();
        names
    }

    #[inline]
    fn of(&mut self, row: &[u64]) -> Option<i32> {
        let leaf = first(&self.leaves, row)?;
        let number = row[usize::from(leaf.cell)] as u32 as i32;
        if let Some(place) = self.places.get(&number) {
            return Some(*place);
        }
        let place = self.words.len() as i32;
        self.places.insert(number, place);
        self.words.push(number.to_string());
        Some(place)
    }

    /// Forgets numbers that the enum does not have, so that they do not pile up.
    fn forget(&mut self) {
        let (words, known) = (&mut self.words, self.known);
        if words.len() > known {
            words.truncate(known);
            self.places.retain(|_, place| (*place as usize) < known);
        }
    }
}

enum Words {
    Case(Case),
    Names(Names),
}

/// Words, as a dictionary or as plain text.
pub(super) struct Labels {
    scope: usize,
    words: Words,
    dictionary: bool,
    keys: Vec<i32>,
    validity: Validity,
}

impl Labels {
    pub(super) fn case(scope: usize, case: Case, dictionary: bool) -> Self {
        Self {
            scope,
            words: Words::Case(case),
            dictionary,
            keys: Vec::new(),
            validity: Validity::default(),
        }
    }

    pub(super) fn names(scope: usize, leaves: Vec<Leaf>, of: &EnumDescriptor) -> Self {
        Self {
            scope,
            words: Words::Names(Names::new(leaves, of)),
            dictionary: true,
            keys: Vec::new(),
            validity: Validity::default(),
        }
    }
}

impl Fill for Labels {
    fn append(&mut self, view: &mut View<'_>) {
        for row in view.scopes[self.scope].all() {
            let key = match &mut self.words {
                Words::Case(case) => case.of(row).map(|word| word as i32),
                Words::Names(names) => names.of(row),
            };
            self.validity.push(key.is_some());
            self.keys.push(key.unwrap_or_default());
        }
    }

    fn nulls(&self) -> usize {
        self.validity.nulls()
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let nulls = self.validity.finish();
        let keys = Int32Array::try_new(renew(&mut self.keys).into(), nulls)?;
        let words = match &self.words {
            Words::Case(case) => &case.words,
            Words::Names(names) => &names.words,
        };
        // A null points to the first word, so there is one.
        let words: StringArray = if words.is_empty() {
            std::iter::once(Some("")).collect()
        } else {
            words.iter().map(Some).collect()
        };
        if let Words::Names(names) = &mut self.words {
            names.forget();
        }
        if self.dictionary {
            let array = DictionaryArray::<Int32Type>::try_new(keys, Arc::new(words))?;
            return Ok(Arc::new(array));
        }
        take(&words, &keys, None)
    }
}
