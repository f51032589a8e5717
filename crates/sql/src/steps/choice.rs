//! `CASE WHEN … THEN 'text' … ELSE 'text' END` with texts that are constant: the most frequent CASE
//! in pipelines, and by far the dearest column where DataFusion evaluates it (it filters the rows and
//! puts together the parts, branch by branch). Here each condition is evaluated once on all rows, and
//! the texts are copied into place.
//!
//! CASE evaluates a condition only on rows that no earlier one took. To evaluate them on all rows
//! gives the same only where a condition cannot fail, so no other condition is accepted.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, StringArray},
    buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer},
};
use datafusion::{
    common::{DataFusionError, Result, ScalarValue, exec_err},
    logical_expr::{ColumnarValue, Operator},
    physical_expr::{
        PhysicalExpr,
        expressions::{BinaryExpr, CaseExpr, Column, IsNotNullExpr, IsNullExpr, Literal, NotExpr},
    },
};

/// Texts are copied in blocks of this many bytes; longer ones are left to DataFusion.
const BLOCK: usize = 16;

/// A CASE that chooses between constant texts.
#[derive(Debug)]
pub(crate) struct Choice {
    conditions: Vec<Arc<dyn PhysicalExpr>>,
    /// One for each condition, and then that of ELSE.
    texts: Vec<Text>,
}

#[derive(Clone, Copy, Debug)]
struct Text {
    bytes: [u8; BLOCK],
    /// None: null.
    length: Option<u8>,
}

impl Choice {
    /// The choice that an expression is; none when it is anything else.
    pub(crate) fn of(expr: &Arc<dyn PhysicalExpr>) -> Option<Self> {
        let case = expr.as_any().downcast_ref::<CaseExpr>()?;
        if case.expr().is_some() || case.when_then_expr().len() >= usize::from(u8::MAX) {
            return None;
        }
        let mut conditions = Vec::new();
        let mut texts = Vec::new();
        for (when, then) in case.when_then_expr() {
            conditions.push(cannot_fail(when).then(|| Arc::clone(when))?);
            texts.push(text(then)?);
        }
        texts.push(match case.else_expr() {
            Some(expr) => text(expr)?,
            None => Text {
                bytes: [0; BLOCK],
                length: None,
            },
        });
        Some(Self { conditions, texts })
    }

    /// The chosen text of each row.
    pub(crate) fn evaluate(&self, rows: &RecordBatch) -> Result<ArrayRef> {
        let count = rows.num_rows();
        let mut chosen = vec![self.conditions.len() as u8; count];
        // Backwards, so that the first condition that holds has the last word.
        for (index, condition) in self.conditions.iter().enumerate().rev() {
            match condition.evaluate(rows)? {
                ColumnarValue::Scalar(ScalarValue::Boolean(Some(true))) => {
                    chosen.fill(index as u8);
                }
                ColumnarValue::Scalar(_) => {}
                ColumnarValue::Array(holds) => mark(&holds, index as u8, &mut chosen)?,
            }
        }
        self.gather(&chosen)
    }

    fn gather(&self, chosen: &[u8]) -> Result<ArrayRef> {
        let mut counts = [0_usize; 256];
        for choice in chosen {
            counts[usize::from(*choice)] += 1;
        }
        let lengths = self
            .texts
            .iter()
            .map(|t| usize::from(t.length.unwrap_or(0)));
        let total: usize = lengths
            .zip(counts)
            .map(|(length, count)| length * count)
            .sum();
        if i32::try_from(total).is_err() {
            return exec_err!("the text of one batch is above 2 GiB");
        }
        // A whole block is written each time; what is too much of it is overwritten by the next.
        let mut bytes = vec![0_u8; total + BLOCK];
        let mut offsets = Vec::with_capacity(chosen.len() + 1);
        let mut end = 0_usize;
        offsets.push(0_i32);
        for choice in chosen {
            let text = &self.texts[usize::from(*choice)];
            bytes[end..end + BLOCK].copy_from_slice(&text.bytes);
            end += usize::from(text.length.unwrap_or(0));
            offsets.push(end as i32);
        }
        bytes.truncate(total);
        let null = |choice: &u8| self.texts[usize::from(*choice)].length.is_none();
        let nulls = self
            .texts
            .iter()
            .any(|text| text.length.is_none())
            .then(|| {
                chosen
                    .iter()
                    .map(|choice| !null(choice))
                    .collect::<NullBuffer>()
            })
            .filter(|nulls| nulls.null_count() > 0);
        let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
        let array = StringArray::try_new(offsets, Buffer::from_vec(bytes), nulls)?;
        Ok(Arc::new(array))
    }
}

/// Writes `index` wherever the condition holds; null does not hold.
fn mark(holds: &ArrayRef, index: u8, chosen: &mut [u8]) -> Result<(), DataFusionError> {
    let Some(holds) = holds.as_boolean_opt() else {
        return exec_err!("a condition is not boolean");
    };
    let bits = match holds.nulls() {
        Some(nulls) => holds.values() & nulls.inner(),
        None => holds.values().clone(),
    };
    let words = bits.bit_chunks();
    let (whole, rest) = chosen.split_at_mut(words.chunk_len() * 64);
    for (word, chosen) in words.iter().zip(whole.chunks_exact_mut(64)) {
        select(word, index, chosen);
    }
    select(words.remainder_bits(), index, rest);
    Ok(())
}

fn select(word: u64, index: u8, chosen: &mut [u8]) {
    for (bit, choice) in chosen.iter_mut().enumerate() {
        // Without a branch: data of a real stream is hard to predict.
        let mask = 0_u8.wrapping_sub((word >> bit & 1) as u8);
        *choice = *choice & !mask | index & mask;
    }
}

fn text(expr: &Arc<dyn PhysicalExpr>) -> Option<Text> {
    let value = expr.as_any().downcast_ref::<Literal>()?.value();
    let ScalarValue::Utf8(value) = value else {
        return None;
    };
    let mut text = Text {
        bytes: [0; BLOCK],
        length: None,
    };
    if let Some(value) = value {
        text.bytes
            .get_mut(..value.len())?
            .copy_from_slice(value.as_bytes());
        text.length = Some(value.len() as u8);
    }
    Some(text)
}

/// Comparisons of columns and constants, and what logic makes of them.
fn cannot_fail(expr: &Arc<dyn PhysicalExpr>) -> bool {
    let any = expr.as_any();
    if any.is::<Column>() || any.is::<Literal>() {
        return true;
    }
    let known = match any.downcast_ref::<BinaryExpr>() {
        Some(binary) => matches!(
            binary.op(),
            Operator::Eq
                | Operator::NotEq
                | Operator::Lt
                | Operator::LtEq
                | Operator::Gt
                | Operator::GtEq
                | Operator::And
                | Operator::Or
                | Operator::IsDistinctFrom
                | Operator::IsNotDistinctFrom
        ),
        None => any.is::<NotExpr>() || any.is::<IsNullExpr>() || any.is::<IsNotNullExpr>(),
    };
    known && expr.children().into_iter().all(cannot_fail)
}
