"""Files of the host: safe opening, owners, durable writes, room, sparse copies, and the text of their errors.

Imports blockfs.core, blockfs.guests, cext.
"""
