//! NetFlow v9 and IPFIX messages: the header, then set by set.

use super::data::{self, Context, Decoded};
use super::listing::Listing;
use super::memory::{Memory, Session};
use super::templates::{self, Before};
use super::values;
use crate::cells::{Rows, table};
use crate::decode::DatagramMeta;
use crate::decode::message::{Message, Set, Sets};
use crate::decode::netflow::{Netflow, Work};
use crate::decode::template::SetKind;
use crate::decode::wire::u32_at;

/// What is needed to explain a message.
pub(super) struct Explanation<'a> {
    pub(super) message: Message<'a>,
    pub(super) meta: &'a DatagramMeta,
    pub(super) trace: &'a Netflow,
    pub(super) rows: &'a Rows,
    pub(super) max_fields: usize,
    pub(super) pending_seconds: u32,
    /// Which datagram of the capture it is, from 1.
    pub(super) number: u64,
    pub(super) memory: &'a mut Memory,
}

/// RFC 3954 §5.1 and RFC 7011 §3.1; false where the datagram is shorter.
pub(super) fn header(listing: &mut Listing<'_>, ipfix: bool) -> bool {
    let (octets, name) =
        if ipfix { (16, "message header (RFC 7011 §3.1)") } else { (20, "packet header (RFC 3954 §5.1)") };
    let whole = listing.left(usize::MAX) >= octets;
    let heading = listing.open(name);
    if !whole {
        listing.broken(usize::MAX, "header", format!("too_short: the header has {octets} octets"));
        listing.close(heading);
        return false;
    }
    let bytes = listing.peek(octets);
    listing.number(2, "version");
    if ipfix {
        listing.number(2, "length");
    } else {
        listing.number(2, "count");
        if let Some(line) = listing.last() {
            line.rule("records of templates, options and data; a check only (RFC 3954 §5.1)");
        }
        let uptime = u32_at(bytes, 4);
        listing.number(4, "sysUpTime");
        if let Some(line) = listing.last() {
            line.value(format!("{uptime} ms ({})", values::uptime(uptime)));
        }
    }
    let seconds = u32_at(bytes, if ipfix { 4 } else { 8 });
    let name = if ipfix { "export time" } else { "unix seconds" };
    let time = values::time(i64::from(seconds) * 1_000_000);
    listing.field(4, name).value(format!("{seconds} ({time})"));
    listing.number(4, "sequence number");
    if let Some(line) = listing.last() {
        line.rule(if ipfix {
            "data records sent before, those of options too (RFC 7011 §3.1)"
        } else {
            "counts packets (RFC 3954 §5.1)"
        });
    }
    listing.number(4, if ipfix { "observation domain" } else { "source id" });
    if let Some(line) = listing.last() {
        line.to("observation_domain");
    }
    listing.close(heading);
    true
}

impl Explanation<'_> {
    /// Lists the sets; the header was before.
    pub(super) fn list(mut self, listing: &mut Listing<'_>) {
        if self.trace.restarted {
            listing
                .note("restart")
                .rule("uptime and sequence went back: the exporter's templates are discarded (RFC 3954 §9)");
            self.memory.forget(self.session());
        }
        let base = listing.at();
        let end = base + self.message.sets.len();
        let mut sets = Sets::new(&self.message);
        let mut start = 0;
        let mut works = self.trace.work.iter().enumerate();
        while let Some(set) = sets.next() {
            let stop = base + sets.walked();
            match set {
                Set::Templates(kind, _) => self.template_set(listing, kind, stop),
                Set::Data(id, _) => match works.next() {
                    Some((at, work)) => self.data_set(listing, id, stop, at, work),
                    None => listing.rest(stop, "data set", "not decoded: the datagram was rejected before"),
                },
                Set::Reserved(id) => {
                    let heading = self.set_header(listing, format!("reserved set {id}"));
                    listing.rest(
                        stop,
                        "content",
                        "skipped: a number that is reserved (RFC 7011 §3.3.2, RFC 3954 §5.1)",
                    );
                    listing.close(heading);
                }
                Set::Bad => {
                    let bytes = self.message.sets.get(start..).unwrap_or_default();
                    let length = crate::decode::wire::u16_at(bytes, 2);
                    let why =
                        if length < 4 { "is less than its header of 4" } else { "goes beyond the message" };
                    let heading = self.set_header(listing, "set that cannot be".to_owned());
                    let why = format!(
                        "bad_set_length: {length} octets {why}; where the next set begins nobody knows"
                    );
                    listing.broken(end, "not read", why);
                    listing.close(heading);
                }
            }
            start = sets.walked();
        }
        listing.rest(end, "padding", "shorter than a set header");
        self.held(listing);
    }

    fn session(&self) -> Session {
        Session {
            sender: self.meta.sender,
            ipfix: self.message.ipfix,
            domain: self.message.domain,
            port: self.meta.sender_port,
        }
    }

    fn set_header(&self, listing: &mut Listing<'_>, name: String) -> usize {
        let heading = listing.open(name);
        listing.number(2, "set id");
        listing.number(2, "set length");
        heading
    }

    fn template_set(&mut self, listing: &mut Listing<'_>, kind: SetKind, stop: usize) {
        let name = match kind {
            SetKind::V9Template => "template flowset (RFC 3954 §5.2)",
            SetKind::V9Options => "options template flowset (RFC 3954 §6.1)",
            SetKind::IpfixTemplate => "template set (RFC 7011 §3.4.1)",
            SetKind::IpfixOptions => "options template set (RFC 7011 §3.4.2)",
        };
        let heading = self.set_header(listing, name.to_owned());
        let (session, number) = (self.session(), self.number);
        let memory = &mut *self.memory;
        templates::list(listing, kind, stop, self.max_fields, |template| {
            memory.define(session, template, number)
        });
        listing.close(heading);
    }

    fn data_set(&mut self, listing: &mut Listing<'_>, id: u16, stop: usize, at: usize, work: &Work) {
        let Some(plan) = &work.plan else {
            let heading = self.set_header(listing, format!("data set of template {id}"));
            let seconds = self.pending_seconds;
            let why = format!(
                "no template {id} is known of this exporter, domain {} and port {}: held for it, up to {seconds} s \
                 (RFC 7011 §9.3, RFC 3954 §9)",
                self.message.domain, self.meta.sender_port
            );
            listing.rest(stop, "data without a template", &why);
            listing.close(heading);
            return;
        };
        let what = if plan.is_options() { "options data" } else { "data" };
        let heading = self.set_header(listing, format!("{what} set of template {id}"));
        let owner = self.owner(id, work.late);
        if let Some(line) = listing.title(heading) {
            line.value(format!("{} records", work.outcome.records)).rule(owner);
        }
        let table = table(plan);
        let set = Decoded {
            plan,
            outcome: work.outcome,
            table,
            cells: self.rows.of(table),
            row: self.rows.work.get(at).copied().flatten().unwrap_or(0),
        };
        let memory = &*self.memory;
        let session = self.session();
        let lookup = |id| memory.template(session, id);
        let context = Context {
            export_us: self.message.export_us,
            uptime_ms: self.message.uptime_ms,
            received_us: self.meta.received_us,
            numbered: true,
            templates: &lookup,
        };
        data::list(listing, stop, &set, &context);
        listing.close(heading);
    }

    /// Who defined the template.
    fn owner(&self, id: u16, late: bool) -> String {
        if late {
            return "its template stands after it in this datagram".to_owned();
        }
        match self.memory.owner(self.session(), id) {
            Some((_, number)) if number == self.number => "its template is in this datagram".to_owned(),
            Some((port, number)) if port == self.meta.sender_port => {
                format!("its template came with datagram {number}")
            }
            Some((port, number)) => format!(
                "its template came from port {port} with datagram {number}: all ports of the exporter agree on it, and are silent or many (rule 9)"
            ),
            None => "its template came before this capture".to_owned(),
        }
    }

    /// What waited and was decoded with this datagram, because of its templates.
    fn held(&self, listing: &mut Listing<'_>) {
        for (at, held) in self.trace.replayed.iter().enumerate() {
            let id = held.set.template;
            let heading = listing.open(format!("data set of template {id} that waited"));
            if let Some(line) = listing.title(heading) {
                let since = values::time(held.set.received_us);
                line.value(format!("{} records", held.outcome.records)).rule(format!(
                    "held since {since}, decoded now that its template came, with the times of its own message; \
                     offsets are in the content of that set"
                ));
            }
            let table = table(&held.plan);
            let set = Decoded {
                plan: &held.plan,
                outcome: held.outcome,
                table,
                cells: self.rows.of(table),
                row: self.rows.replayed.get(at).copied().unwrap_or(0),
            };
            let lookup = |id| self.memory.template(self.session(), id);
            let context = Context {
                export_us: held.set.export_us,
                uptime_ms: held.set.uptime_ms,
                received_us: held.set.received_us,
                numbered: true,
                templates: &lookup,
            };
            let mut inner = Listing::new(&held.set.data, listing.dictionary());
            data::list(&mut inner, held.set.data.len(), &set, &context);
            listing.append_held(inner);
            listing.close(heading);
        }
    }
}

impl Memory {
    /// Takes in a definition; answers what was known of it before.
    pub(super) fn define(
        &mut self,
        session: Session,
        template: &crate::decode::template::Template,
        number: u64,
    ) -> Before {
        let before = self.own(session, template.id);
        let answer = match before {
            None => Before::Unknown,
            Some((known, number)) if *known == *template => Before::Same(number),
            Some((_, number)) => Before::Other(number),
        };
        self.put(session, template, number);
        answer
    }
}
