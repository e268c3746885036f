"""What is known of resource-efficient deep learning, as data: techniques, influences, measurements, papers."""
