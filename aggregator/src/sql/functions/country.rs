//! The country of an address. Unlike the other functions it needs something that is not in the query: the database that
//! `aggregate.countries` names.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::arrow::array::StringBuilder;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::address::Ips;
use super::{Arg, bad_value, extent, finish};
use crate::countries::Countries;

pub(super) const DOC: &str =
    "country(address) → DE, FR …; NULL where the database (`aggregate.countries`) says nothing of it";
const NAME: &str = "country";

#[derive(Debug)]
struct Country {
    countries: Countries,
    signature: Signature,
}

impl PartialEq for Country {
    fn eq(&self, other: &Self) -> bool {
        self.countries == other.countries
    }
}

impl Eq for Country {}

impl Hash for Country {
    fn hash<H: Hasher>(&self, state: &mut H) {
        NAME.hash(state);
    }
}

pub(super) fn country(countries: Countries) -> ScalarUDF {
    // another database may come while weir runs
    ScalarUDF::new_from_impl(Country { countries, signature: Signature::user_defined(Volatility::Stable) })
}

impl ScalarUDFImpl for Country {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        let [given] = given else {
            return Err(bad_value(format!("{NAME} takes 1 argument, not {}: {DOC}", given.len())));
        };
        Ok(vec![Arg::Ip.coerce(given, NAME)?])
    }

    fn return_type(&self, _given: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let Some(ranges) = self.countries.current() else {
            return Err(bad_value(format!(
                "{NAME}() needs a database of countries: name one in `aggregate.countries` of the configuration"
            )));
        };
        let (rows, constant) = extent(&args.args, args.number_rows);
        let addresses = Ips::of(&args.args[0])?;
        let mut codes = StringBuilder::new();
        for row in 0..rows {
            let address = addresses.get(row).map(|address| u128::from_be_bytes(address.0));
            codes.append_option(address.and_then(|address| ranges.code(ranges.number(address))));
        }
        finish(Arc::new(codes.finish()), constant)
    }
}
