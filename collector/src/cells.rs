//! The rows that weir made of a datagram, cell by cell as text.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{
    DataType, Float64Type, TimestampMicrosecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use weir_schemas::{Address, Mac, Table};

use crate::decode::Batches;
use crate::decode::compile::Plan;
use crate::decode::netflow::Netflow;

/// A batch, or none where the datagram gave no rows of that table.
#[derive(Debug, Default)]
pub(crate) struct Cells(pub(crate) Option<RecordBatch>);

impl Cells {
    fn column(&self, name: &str) -> Option<&ArrayRef> {
        self.0.as_ref()?.column_by_name(name)
    }

    /// The value of a cell; None where it is NULL or the batch has no such column. Times are µs since 1970, lists have
    /// commas.
    pub(crate) fn text(&self, column: &str, row: usize) -> Option<String> {
        text(self.column(column)?, row)
    }

    /// The entry of a map.
    pub(crate) fn entry(&self, column: &str, row: usize, key: &str) -> Option<String> {
        let map = self.column(column)?.as_map_opt()?;
        if row >= map.len() || map.is_null(row) {
            return None;
        }
        let entries = map.value(row);
        let (keys, values) = (entries.column(0).as_string_opt::<i32>()?, entries.column(1));
        let at = (0..entries.len()).find(|at| keys.value(*at) == key)?;
        text(values, at)
    }
}

fn text(array: &ArrayRef, row: usize) -> Option<String> {
    if row >= array.len() || array.is_null(row) {
        return None;
    }
    Some(match array.data_type() {
        DataType::Timestamp(..) => {
            array.as_primitive_opt::<TimestampMicrosecondType>()?.value(row).to_string()
        }
        DataType::FixedSizeBinary(16) => {
            Address(array.as_fixed_size_binary_opt()?.value(row).try_into().ok()?).to_string()
        }
        DataType::FixedSizeBinary(_) => {
            Mac(array.as_fixed_size_binary_opt()?.value(row).try_into().ok()?).to_string()
        }
        DataType::Boolean => array.as_boolean_opt()?.value(row).to_string(),
        DataType::UInt8 => array.as_primitive_opt::<UInt8Type>()?.value(row).to_string(),
        DataType::UInt16 => array.as_primitive_opt::<UInt16Type>()?.value(row).to_string(),
        DataType::UInt32 => array.as_primitive_opt::<UInt32Type>()?.value(row).to_string(),
        DataType::UInt64 => array.as_primitive_opt::<UInt64Type>()?.value(row).to_string(),
        DataType::Float64 => array.as_primitive_opt::<Float64Type>()?.value(row).to_string(),
        DataType::Utf8 => array.as_string_opt::<i32>()?.value(row).to_owned(),
        DataType::Dictionary(..) => {
            let labels = array.as_dictionary_opt::<UInt8Type>()?;
            let key = usize::from(labels.keys().value(row));
            labels.values().as_string_opt::<i32>()?.value(key).to_owned()
        }
        DataType::List(_) => {
            let items = array.as_list_opt::<i32>()?.value(row);
            let items: Vec<_> = (0..items.len()).filter_map(|at| text(&items, at)).collect();
            items.join(",")
        }
        _ => return None,
    })
}

/// Which table the rows of a plan go to.
pub(crate) fn table(plan: &Plan) -> Table {
    match (plan.is_options(), plan.events) {
        (true, _) => Table::Options,
        (false, true) => Table::NatEvents,
        (false, false) => Table::Flows,
    }
}

/// All rows that a datagram gave, and which of them came from which set.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    tables: [Cells; Table::ALL.len()],
    /// The first row of every data set that was decoded, in the order of the datagram.
    pub(crate) work: Vec<Option<usize>>,
    /// The same of the sets that waited.
    pub(crate) replayed: Vec<usize>,
}

impl Rows {
    /// Closes the batches; they had nothing else in them.
    pub(crate) fn take(batches: &mut Batches, trace: &Netflow) -> Rows {
        let mut rows = Rows {
            tables: batches.all_mut().map(|builder| Cells(builder.finish())),
            work: vec![None; trace.work.len()],
            replayed: Vec::new(),
        };
        let mut next = [0_usize; Table::ALL.len()];
        let mut pass = |plan: &Plan, count: u32| {
            let at = &mut next[index(table(plan))];
            std::mem::replace(at, *at + count as usize)
        };
        // the decoder's order: options data, what waited, flows and events
        for options in [true, false] {
            for (work, start) in trace.work.iter().zip(&mut rows.work) {
                if let Some(plan) = work.plan.as_ref().filter(|plan| plan.is_options() == options) {
                    *start = Some(pass(plan, work.outcome.rows));
                }
            }
            if options {
                rows.replayed = trace.replayed.iter().map(|set| pass(&set.plan, set.outcome.rows)).collect();
            }
        }
        rows
    }

    pub(crate) fn of(&self, table: Table) -> &Cells {
        &self.tables[index(table)]
    }

    /// The batches, in the order of [`Table::ALL`].
    pub(crate) fn into_batches(self) -> [Option<RecordBatch>; Table::ALL.len()] {
        self.tables.map(|cells| cells.0)
    }
}

fn index(table: Table) -> usize {
    Table::ALL.iter().position(|one| *one == table).unwrap_or(0)
}
