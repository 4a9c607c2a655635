package client

import "github.com/google/uuid"

// requestID is empty when the system has no randomness: the node mints one
// then, and only a blind retry loses its protection.
func requestID() string {
	id, err := uuid.NewV7()
	if err != nil {
		return ""
	}
	return id.String()
}
