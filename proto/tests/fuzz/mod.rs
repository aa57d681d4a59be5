//! Bodies of fuzz targets, one for each parser of the crate. A cargo-fuzz target (folder `fuzz/`)
//! calls one of them; the tests replay a corpus and random inputs through them.

use bypass_proto::control::{QueryKind, Refusal, Reply, ReplyKind, Request, RequestKind, VERSION};
use bypass_proto::options::{Options, setting};
use bypass_proto::policy::Policy;
use bypass_proto::report::{Report, ReportView};
use zerocopy::{FromBytes, IntoBytes};

/// The input is what came on the control socket, of either side.
pub fn fuzz_message(data: &[u8]) {
    match Request::parse(data) {
        Ok(request) => {
            assert_eq!(data.len(), size_of::<Request>());
            assert_eq!(request.as_bytes(), data);
            let kind = RequestKind::from_wire(request.kind);
            assert!(kind.is_none_or(|kind| kind as u16 == request.kind));
            // Another version is told so, whatever else it says.
            let mut other = data.to_vec();
            other[4..6].copy_from_slice(&(VERSION + 1).to_ne_bytes());
            let refused = Request::parse(&other).map(|_| ());
            assert_eq!(refused, Err((Refusal::Version, request.sequence)));
        }
        Err((refusal, _)) => {
            assert!([Refusal::Version, Refusal::Malformed].contains(&refusal));
        }
    }
    if let Ok(reply) = Reply::read_from_bytes(data) {
        let kind = ReplyKind::from_wire(reply.kind);
        assert!(kind.is_none_or(|kind| kind as u16 == reply.kind));
        let refusal = Refusal::from_wire(reply.refusal);
        assert!(refusal.is_none_or(|refusal| Refusal::ALL.contains(&refusal)));
    }
    let _ = QueryKind::Daemon;
}

/// The input is a configuration file. What is accepted says the same when it is written.
pub fn fuzz_policy(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match Policy::parse(text) {
        Ok(policy) => {
            let written = policy.to_toml();
            assert_eq!(Policy::parse(&written), Ok(policy), "{written}");
        }
        Err(error) => {
            assert!(error.line >= 1 && error.line <= text.split('\n').count());
            assert!(error.column >= 1 && !error.message.contains('\n'));
        }
    }
}

/// The input is an environment, a variable a line: `NAME=value`.
pub fn fuzz_options(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let variables = text.lines().filter_map(|line| line.split_once('='));
    let (options, messages) = Options::from_env(variables.clone());
    assert!(messages.len() <= variables.clone().count());
    // Those that are reported change nothing.
    let good = variables
        .clone()
        .filter(|one| Options::from_env([*one]).1.is_empty());
    let (again, none) = Options::from_env(good);
    assert!(none.is_empty());
    assert_eq!(format!("{options:?}"), format!("{again:?}"));
    for (name, value) in variables {
        if let Ok(one) = setting(name, value) {
            assert_eq!((one.key, one.value.as_str()), (name, value));
        }
    }
}

/// The input is the memory of a process's report.
pub fn fuzz_report(data: &[u8]) {
    if let Ok(view) = ReportView::read(data) {
        let text = view.header.program_text() + &view.header.config_text();
        assert!(!text.contains(char::is_control));
        for record in &view.records {
            let _ = (
                record.reason(),
                record.rule(),
                record.protocol(),
                record.role(),
            );
            let _ = (
                record.local().to_string(),
                record.remote().map(|it| it.to_string()),
            );
        }
    }
    // And as its own process sees it, which goes on writing into what it finds.
    let mut words: Vec<u64> = data
        .chunks(8)
        .map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_ne_bytes(word)
        })
        .collect();
    if let Ok(mut report) = Report::attach(words.as_mut_bytes()) {
        for fd in [0, 7, -1, i32::MAX] {
            report.insert(bypass_proto::report::Record {
                fd,
                ..Default::default()
            });
            report.remove(fd);
            assert!(report.find(fd).is_none());
        }
    }
}
