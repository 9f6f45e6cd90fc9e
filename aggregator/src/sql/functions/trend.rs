//! A trend that outliers do not bend: Theil and Sen's median of the slopes between all pairs of points, with Sen's
//! interval of 95 % (P. K. Sen, 1968).

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, AsArray, Float64Array, ListArray};
use datafusion::arrow::buffer::OffsetBuffer;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Float64Type};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, Signature, Volatility};

use super::bad_value;

/// Points of a trend: all pairs of them are compared.
const MAX_POINTS: usize = 2_000;

/// Which number of the trend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Part {
    Slope,
    Low,
    High,
    Level,
}

pub(super) const DOCS: [&str; 4] = [
    "trend_slope(y, x) → how much y grows with x: the median of the slopes of all pairs of points (Theil–Sen), at most 2,000 points a group",
    "trend_low(y, x) → the lower end of its 95 % interval (Sen)",
    "trend_high(y, x) → the upper end of its 95 % interval",
    "trend_level(y, x) → where the trend stands at the greatest x",
];

#[derive(Debug, PartialEq, Eq, Hash)]
struct Trend {
    part: Part,
    signature: Signature,
}

pub(crate) fn aggregates() -> Vec<Arc<AggregateUDF>> {
    let aggregate = |part| {
        let signature = Signature::exact(vec![DataType::Float64, DataType::Float64], Volatility::Immutable);
        Arc::new(AggregateUDF::new_from_impl(Trend { part, signature }))
    };
    [Part::Slope, Part::Low, Part::High, Part::Level].map(aggregate).to_vec()
}

impl AggregateUDFImpl for Trend {
    fn name(&self) -> &str {
        match self.part {
            Part::Slope => "trend_slope",
            Part::Low => "trend_low",
            Part::High => "trend_high",
            Part::Level => "trend_level",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn accumulator(&self, _: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(Points { part: self.part, points: Vec::new() }))
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        Ok(vec![Arc::new(Field::new(format!("{}[points]", args.name), points_type(), true))])
    }
}

fn points_type() -> DataType {
    DataType::List(Arc::new(Field::new_list_field(DataType::Float64, true)))
}

/// The points as (x, y).
#[derive(Debug)]
struct Points {
    part: Part,
    points: Vec<(f64, f64)>,
}

impl Points {
    fn push(&mut self, x: f64, y: f64) -> Result<()> {
        if self.points.len() >= MAX_POINTS {
            return Err(bad_value(format!("a trend takes at most {MAX_POINTS} points: group them first")));
        }
        if x.is_finite() && y.is_finite() {
            self.points.push((x, y));
        }
        Ok(())
    }
}

impl Accumulator for Points {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let (ys, xs) = (values[0].as_primitive::<Float64Type>(), values[1].as_primitive::<Float64Type>());
        for (x, y) in xs.iter().zip(ys) {
            if let (Some(x), Some(y)) = (x, y) {
                self.push(x, y)?;
            }
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(ScalarValue::Float64(value(self.part, &self.points)))
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.points.capacity() * size_of::<(f64, f64)>()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let flat: Vec<f64> = self.points.iter().flat_map(|(x, y)| [*x, *y]).collect();
        let list = ListArray::try_new(
            Arc::new(Field::new_list_field(DataType::Float64, true)),
            OffsetBuffer::from_lengths([flat.len()]),
            Arc::new(Float64Array::from(flat)),
            None,
        )?;
        Ok(vec![ScalarValue::List(Arc::new(list))])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        for points in states[0].as_list::<i32>().iter().flatten() {
            for point in points.as_primitive::<Float64Type>().values().chunks_exact(2) {
                self.push(point[0], point[1])?;
            }
        }
        Ok(())
    }
}

fn median(sorted: &[f64]) -> Option<f64> {
    let upper = sorted.get(sorted.len() / 2)?;
    let lower = sorted.get((sorted.len() - 1) / 2)?;
    Some(f64::midpoint(*lower, *upper))
}

/// NULL where no two points have different x.
fn value(part: Part, points: &[(f64, f64)]) -> Option<f64> {
    let mut slopes = Vec::with_capacity(points.len() * points.len().saturating_sub(1) / 2);
    for (at, (x, y)) in points.iter().enumerate() {
        let later = points[at + 1..].iter().filter(|(other, _)| other != x);
        slopes.extend(later.map(|(other, value)| (value - y) / (other - x)));
    }
    slopes.sort_unstable_by(f64::total_cmp);
    let slope = median(&slopes)?;
    let (count, pairs) = (points.len() as f64, slopes.len() as f64);
    let spread = 1.959_964 * (count * (count - 1.0) * (2.0 * count + 5.0) / 18.0).sqrt();
    Some(match part {
        Part::Slope => slope,
        Part::Low => slopes[((pairs - spread) / 2.0).floor().max(1.0) as usize - 1],
        Part::High => slopes[(((pairs + spread) / 2.0).floor() as usize).min(slopes.len() - 1)],
        Part::Level => {
            let mut rests: Vec<f64> = points.iter().map(|(x, y)| y - slope * x).collect();
            rests.sort_unstable_by(f64::total_cmp);
            let last = points.iter().map(|(x, _)| *x).fold(f64::MIN, f64::max);
            median(&rests)? + slope * last
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(points: &[(f64, f64)]) -> [Option<f64>; 4] {
        [Part::Slope, Part::Low, Part::High, Part::Level].map(|part| value(part, points))
    }

    #[test]
    fn a_line_is_found_whatever_one_point_in_five_does() {
        let mut points: Vec<(f64, f64)> = (0..20).map(|x| (f64::from(x), 3.0 + 2.0 * f64::from(x))).collect();
        assert_eq!(all(&points), [Some(2.0), Some(2.0), Some(2.0), Some(41.0)]);
        for at in [3, 9, 14, 17] {
            points[at].1 = 1_000.0;
        }
        let [slope, low, high, level] = all(&points);
        assert!((slope.unwrap() - 2.0).abs() < 0.01 && (level.unwrap() - 41.0).abs() < 0.1);
        // 120 of the 190 slopes are 2: the interval is no wider
        assert_eq!((low, high), (Some(2.0), Some(2.0)));
    }

    /// Sen's interval by hand: y = 1, 3, 2, 5, 4 at x = 1 to 5 has the ten slopes −1, −1, ⅓, ½, ¾, 1, 1, 4/3, 2, 3;
    /// the spread is 1.96 · √(5 · 4 · 15 / 18) = 8.0, so the interval is from the first to the tenth.
    #[test]
    fn the_interval_is_sens() {
        let points = [(1.0, 1.0), (2.0, 3.0), (3.0, 2.0), (4.0, 5.0), (5.0, 4.0)];
        let [slope, low, high, level] = all(&points);
        assert_eq!(slope, Some(0.875));
        assert_eq!((low, high), (Some(-1.0), Some(3.0)));
        assert_eq!(level, Some(4.5));
    }

    #[test]
    fn no_trend_without_two_different_x() {
        assert_eq!(all(&[]), [None; 4]);
        assert_eq!(all(&[(1.0, 2.0), (1.0, 3.0)]), [None; 4]);
        let mut points = Points { part: Part::Slope, points: vec![(0.0, 0.0); MAX_POINTS] };
        assert!(points.push(1.0, 1.0).is_err());
    }
}
