package client

import "github.com/revokd/revokd/cluster/replication"

// changed is told what has changed in the table; mu is held.
func (c *Client) changed([]replication.Record) {}
