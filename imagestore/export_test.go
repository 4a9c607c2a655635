package imagestore

import "time"

// SetBodyTimeout is for bodies that are got afterwards.
func (s *Store) SetBodyTimeout(d time.Duration) { s.body = d }
