//! Why bytes were not decoded.

macro_rules! reasons {
    ($($variant:ident $label:literal $doc:literal)*) => {
        /// Why a datagram, or a set of it, was rejected: the label of the metric and the value in SQL.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum RejectReason { $(#[doc = $doc] $variant,)* }

        impl RejectReason {
            /// Every reason.
            pub const ALL: [RejectReason; [$($label,)*].len()] = [$(RejectReason::$variant,)*];

            /// Its label.
            pub const fn as_str(self) -> &'static str {
                match self { $(RejectReason::$variant => $label,)* }
            }
        }
    };
}

reasons! {
    TooShort "too_short" "Shorter than the header of its protocol."
    UnknownVersion "unknown_version" "The version is none that weir knows."
    NetFlow8 "netflow8" "NetFlow v8 (router-based aggregation) is not decoded."
    OldSflow "old_sflow" "sFlow 2 or 4; version 5 is decoded."
    BadAgent "bad_agent" "sFlow: the agent's address is of a family that there is not."
    BadLength "bad_length" "The message's length field is greater than the datagram, or less than its header."
    BadCount "bad_count" "The header counts more records than the datagram holds."
    BadSetLength "bad_set_length" "A set is shorter than its header or ends after the message."
    BadTemplate "bad_template" "A template that cannot be: id below 256, no fields, records of no length, too many fields."
    TemplateLimit "template_limit" "A template beyond the limit of its session or of all."
    TruncatedRecord "truncated_record" "A record or sample ends after its set or datagram."
    DecoderPanic "decoder_panic" "A mistake in weir: the decoder panicked on it."
}

impl RejectReason {
    /// Its position in [`RejectReason::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}
