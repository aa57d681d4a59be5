//! Finding an endpoint by its shadow.

use crate::Stack;
use crate::types::EndpointId;

impl Stack<'_> {
    /// The endpoint whose shadow has this cookie (`SO_COOKIE`), if one is live. Walks the
    /// endpoints:
    /// for sockets that came by fork or by descriptor passing, not for the data path.
    #[must_use]
    pub fn udp_find(&self, shadow_cookie: u64) -> Option<EndpointId> {
        self.endpoints
            .iter()
            .zip(0_u32..)
            .map(|(endpoint, index)| {
                (
                    endpoint,
                    EndpointId {
                        index,
                        generation: endpoint.generation,
                    },
                )
            })
            .find(|(endpoint, id)| endpoint.shadow_cookie == shadow_cookie && self.is_live(*id))
            .map(|(_, id)| id)
    }
}
