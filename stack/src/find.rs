//! Finding an endpoint by its shadow.

use crate::Stack;
use crate::image::kind;
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

    /// Every live TCP endpoint of which the shadow's cookie is known, with that.
    pub fn tcp_shadows(&self) -> impl Iterator<Item = (u64, EndpointId)> {
        let all = self.endpoints.iter().zip(0_u32..);
        let known = all.filter(|(it, _)| it.kind == kind::TCP && it.shadow_cookie != 0);
        known.map(|(endpoint, index)| {
            let generation = endpoint.generation;
            (endpoint.shadow_cookie, EndpointId { index, generation })
        })
    }
}
