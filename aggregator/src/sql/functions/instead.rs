//! A function in the place of another one: the same to a plan, but for what it does when it is called.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::common::Result;
use datafusion::logical_expr::sort_properties::{ExprProperties, SortProperties};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};

/// What is called, with the function that it stands for.
pub(super) type Call = fn(&ScalarUDF, ScalarFunctionArgs) -> Result<ColumnarValue>;

#[derive(Debug)]
struct Instead {
    inner: Arc<ScalarUDF>,
    call: Call,
}

/// Puts `call` in the place of a function.
pub(super) fn call_instead(function: &mut Arc<ScalarUDF>, call: Call) {
    *function = Arc::new(ScalarUDF::new_from_impl(Instead { inner: Arc::clone(function), call }));
}

// a session has one function of a name, and one call for it
impl PartialEq for Instead {
    fn eq(&self, other: &Instead) -> bool {
        self.inner == other.inner
    }
}

impl Eq for Instead {}

impl Hash for Instead {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

impl ScalarUDFImpl for Instead {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, given: &[DataType]) -> Result<DataType> {
        self.inner.return_type(given)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(given)
    }

    fn output_ordering(&self, inputs: &[ExprProperties]) -> Result<SortProperties> {
        self.inner.output_ordering(inputs)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        (self.call)(&self.inner, args)
    }
}
