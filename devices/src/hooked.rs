//! For tests: a look at every translation, from inside the session that asks for it.

use std::sync::Arc;

use iommu_core::testkit::ListTranslator;
use iommu_core::{Fault, PageRequest, PageRequestOutcome, Request, Translation, Translator};
use parking_lot::Mutex;

/// Called inside sessions, before every look-up.
pub(crate) type Hook = Arc<Mutex<Option<Box<dyn Fn(&Request) + Send>>>>;

/// A translator that calls a hook first.
pub(crate) struct Hooked {
    inner: Arc<ListTranslator>,
    hook: Hook,
}

impl Hooked {
    pub(crate) fn new(inner: &Arc<ListTranslator>, hook: &Hook) -> Self {
        Self { inner: inner.clone(), hook: hook.clone() }
    }
}

impl Translator for Hooked {
    fn translate(&self, request: &Request) -> Result<Translation, Fault> {
        if let Some(hook) = &*self.hook.lock() {
            hook(request);
        }
        self.inner.translate(request)
    }

    fn report(&self, fault: &Fault) {
        self.inner.report(fault);
    }

    fn page_request(&self, request: &PageRequest) -> PageRequestOutcome {
        self.inner.page_request(request)
    }
}
